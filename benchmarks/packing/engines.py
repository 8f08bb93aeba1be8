"""Small engines that are carried whole, and what the interpreter says of them: tokens, best logits, one step's buffers."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path

import numpy as np
from gpu_engines import EngineSpec, plan_digest
from gpu_tokens import traces

from llmc.compiler.targets.simulate.device import SimulatedDevice
from llmc.runtime.engine_file.file import EngineFile
from llmc.runtime.plan.executor import PagedExecutor

PROMPTS = (5, 33, 70)


def simulate(engine: Path, folder: Path, sm: int, tokens: int, known: Path) -> Path:
    """Write the interpreter's tokens and best logits of an engine into a folder.

    known: a folder that keeps them from one run to the next, as long as the plan is the same.
    """
    plan, kept = plan_digest(engine, sm), known / f"{engine.stem}.json"
    if not kept.exists() or json.loads(kept.read_text())["plan"] != plan:
        executor = PagedExecutor(EngineFile.open(engine), f"sm_{sm}", SimulatedDevice, max_batch=len(PROMPTS))
        random = np.random.default_rng(0)
        found = traces(executor, [random.integers(0, executor.vocab, length).tolist() for length in PROMPTS], tokens)
        executor.close()
        known.mkdir(parents=True, exist_ok=True)
        kept.write_text(json.dumps({"plan": plan, "traces": [asdict(one) for one in found]}) + "\n")
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / kept.name
    path.write_bytes(kept.read_bytes())
    return path


def built(spec: EngineSpec, work: Path, folder: Path, sm: int) -> Path:
    """An engine of the sources as they are, in a folder."""
    path = spec.path(folder, sm)
    path.unlink(missing_ok=True)
    return spec.built(folder, sm)
