"""Step A5: checks that the GPU gives the interpreter's results for the same engine, and equal results on every path.

Every prompt is run twice: following the interpreter's tokens, which compares logits at every step and gives the noise
between the two, and freely, over CUDA graphs and one step ahead. Another token is right only where the interpreter's
two best logits are closer than twice the noise. Between graphs and single launches, with and without programmatic
dependent launch, nothing may differ at all. Where an engine disagrees, a step is run launch by launch against the
interpreter's buffers (`dump.py`), and the first kernel that differs is named.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from gpu_tokens import Trace, first_difference, generate, noise, tie

from bringup import dump
from bringup.bench import Bench
from bringup.decode import BenchDevice
from bringup.step import Item, Step
from llmc.runtime.cuda.contents import EngineContents
from llmc.runtime.cuda.driver import Driver
from llmc.runtime.engine_file.file import EngineFile
from llmc.runtime.errors import LlmcError
from llmc.runtime.plan.executor import PagedExecutor
from llmc.runtime.plan.plan import Plan
from llmc.runtime.scheduling.executor import Executor
from llmc.runtime.scheduling.request import Request

BOUND = 3e-2
"""Most noise, of the largest logit: what verify allows a GPU's profile."""
PATHS = ((False, True), (True, False), (True, True))
"""(graphs, programmatic dependent launch) besides (False, False)."""
_LIMIT = 15.0


@dataclass(frozen=True)
class Simulated:
    """The interpreter's results: the plan's digest, and the trace after each prompt."""

    plan: str
    traces: tuple[Trace, ...]

    @staticmethod
    def read(path: Path) -> Simulated:
        found = json.loads(path.read_text())
        kept = [Trace(tuple(t["prompt"]), tuple(map(tuple, t["ids"])), tuple(map(tuple, t["logits"])))
                for t in found["traces"]]  # fmt: skip
        return Simulated(found["plan"], tuple(kept))


def judge(executor: Executor, traces: Sequence[Trace]) -> dict[str, Any]:
    """The noise, the tokens that differ from the interpreter's, and whether all of them are ties."""
    found = noise(executor, traces)
    answers, _ = generate(executor, requests(traces))
    places = [first_difference(answer, one.tokens) for answer, one in zip(answers, traces, strict=True)]
    free = [(index, place) for index, place in enumerate(places) if place is not None]
    wrong = [traces[i].margin(step) for i, step in (*found.others, *free) if not tie(traces[i], step, found.worst)]
    return {
        "ok": not wrong and found.worst <= BOUND * found.largest,
        "tokens": sum(len(one.ids) for one in traces),
        "noise": found.worst,
        "noise_of_largest": found.worst / found.largest if found.largest else None,
        "other_tokens_followed": len(found.others),
        "answers_that_differ": len(free),
        "first_differences": [place for _, place in free],
        "margins_beyond_noise": wrong,
    }


def requests(traces: Sequence[Trace]) -> list[Request]:
    return [Request(one.prompt, len(one.ids), ignore_eos=True) for one in traces]


@contextmanager
def loaded(
    bench: Bench, path: Path, *, graphs: bool = True, pdl: bool = False
) -> Iterator[tuple[PagedExecutor, BenchDevice]]:
    """A carried engine on the GPU: its executor, and the device below."""
    made: list[BenchDevice] = []

    def make(engine: EngineFile, profile: str, plan: Plan, slots: int) -> BenchDevice:
        contents = bench.loader.contents(EngineContents(engine, profile))
        plan = replace(plan, pdl=pdl)
        made.append(BenchDevice(contents, plan, slots, driver=Driver.load(), graphs=graphs))
        return made[0]

    executor = PagedExecutor(EngineFile.open(path), f"sm_{bench.carry.sm}", make, max_batch=None)
    try:
        yield executor, made[0]
    finally:
        executor.close()


def plan_digest(engine: Path, sm: int) -> str:
    """A digest of an engine's plan, which names its kernels' sources."""
    with EngineFile.open(engine) as opened:
        return hashlib.sha256(opened.section(opened.manifest.profiles[f"sm_{sm}"].graph)).hexdigest()


def agrees(bench: Bench, stem: str) -> Mapping[str, Any]:
    """Compare an engine with the interpreter's results.

    Raises:
        LlmcError: they are of different plans.
    """
    path, known = _engine(bench, stem), Simulated.read(_said(bench, stem))
    if plan_digest(path, bench.carry.sm) != known.plan:
        raise LlmcError(
            f"expected the plan that was simulated in {path.name}", found="another", fix="make the carry again"
        )
    with loaded(bench, path) as (executor, device):
        return {**judge(executor, known.traces), "plan": known.plan, "notes": list(device.notes)}


def same(bench: Bench, stem: str) -> Mapping[str, Any]:
    """Whether an engine's tokens are equal with graphs and without, with programmatic dependent launch and without."""
    wanted = requests(Simulated.read(_said(bench, stem)).traces)
    answers: dict[str, list[list[int]]] = {}
    for graphs, pdl in ((False, False), *PATHS):
        with loaded(bench, _engine(bench, stem), graphs=graphs, pdl=pdl) as (executor, _):
            answers[f"{'graphs' if graphs else 'launches'}{', pdl' if pdl else ''}"] = generate(executor, wanted)[0]
    first = answers["launches"]
    differ = {
        path: [first_difference(a, b) for a, b in zip(found, first, strict=True)]
        for path, found in answers.items()
        if found != first
    }
    return {
        "ok": not differ,
        "plan": plan_digest(_engine(bench, stem), bench.carry.sm),
        "tokens": sum(map(len, first)),
        "first differences from launches": differ,
    }


def guilty(bench: Bench, stem: str) -> Mapping[str, Any]:
    """The first launch of a dumped step whose buffers are not the interpreter's."""
    recorded = dump.read(_dumped(bench, stem))
    if plan_digest(_engine(bench, stem), bench.carry.sm) != recorded.plan:
        raise LlmcError(f"expected the plan that was dumped for {stem}", found="another", fix="make the carry again")
    with loaded(bench, _engine(bench, stem), graphs=False) as (_, device):
        return dump.compare(device, recorded)


def _engine(bench: Bench, stem: str) -> Path:
    return bench.carry.unpacked("engines") / f"{stem}.llmc"


def _said(bench: Bench, stem: str) -> Path:
    return bench.carry.folder / "simulated" / f"{stem}.json"


def _dumped(bench: Bench, stem: str) -> Path:
    return bench.carry.folder / "dump" / f"{stem}.npz"


def items(bench: Bench) -> Iterator[Item]:
    """Both checks of each carried engine, then the first wrong kernel of each engine that fails."""
    stems = sorted(path.stem for path in bench.carry.unpacked("engines").glob("*.llmc"))
    stems = [stem for stem in stems if _said(bench, stem).exists()]
    if not stems:
        raise LlmcError("expected carried engines with results of the interpreter", found="none")
    wrong = []
    checks: tuple[tuple[str, Callable[..., Mapping[str, Any]]], ...] = (("", agrees), ("paths ", same))
    for stem in stems:
        for word, check in checks:
            yield Item(f"{word}{stem}", partial(check, stem=stem), _LIMIT)
            outcome = bench.journal.outcomes.get(f"agree/{word}{stem}", {})
            failed = "error" in outcome or outcome.get("result", {}).get("ok") is False
            if failed and stem not in wrong:
                wrong.append(stem)
    for stem in wrong:
        if _dumped(bench, stem).exists():
            yield Item(f"guilty {stem}", partial(guilty, stem=stem), _LIMIT)


STEP = Step("agree", 34, items)
