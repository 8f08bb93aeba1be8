"""Small engines that are carried whole, with the interpreter's results for them: tokens, best logits, buffers."""

from __future__ import annotations

import json
import shutil
from dataclasses import asdict
from pathlib import Path

import gpu_dump
import numpy as np
from bringup.agree import plan_digest
from gpu_engines import EngineSpec
from gpu_tokens import traces

from llmc.compiler.targets.simulate.device import SimulatedDevice
from llmc.runtime.engine_file.file import EngineFile
from llmc.runtime.plan.executor import PagedExecutor

PROMPTS = (5, 33, 70)


def simulate(engine: Path, out: Path, sm: int, tokens: int, known: Path) -> None:
    """Put the interpreter's tokens and best logits of an engine, and buffers of a short run, into the carried folder.

    known: a folder that keeps them from one run to the next, as long as the plan is the same.
    """
    plan, said, dumped = plan_digest(engine, sm), known / f"{engine.stem}.json", known / f"{engine.stem}.npz"
    if not said.exists() or json.loads(said.read_text())["plan"] != plan:
        known.mkdir(parents=True, exist_ok=True)
        gpu_dump.record(engine, sm, dumped)
        said.write_text(json.dumps({"plan": plan, "traces": _traced(engine, sm, tokens)}) + "\n")
    for path, part in ((said, "simulated"), (dumped, "dump")):
        (out / part).mkdir(parents=True, exist_ok=True)
        shutil.copyfile(path, out / part / path.name)


def _traced(engine: Path, sm: int, tokens: int) -> list[dict[str, object]]:
    executor = PagedExecutor(EngineFile.open(engine), f"sm_{sm}", SimulatedDevice, max_batch=len(PROMPTS))
    random = np.random.default_rng(0)
    found = traces(executor, [random.integers(0, executor.vocab, length).tolist() for length in PROMPTS], tokens)
    executor.close()
    return [asdict(one) for one in found]


def built(spec: EngineSpec, folder: Path, sm: int) -> Path:
    """An engine of the sources as they are, in a folder."""
    spec.path(folder, sm).unlink(missing_ok=True)
    return spec.built(folder, sm)
