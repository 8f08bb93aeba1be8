"""What `llmc build` and `llmc bench` should take here by the facts of this machine, to stand beside what they took."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import TYPE_CHECKING

from ...runtime.progress import BYTES, Progress
from ..common import console

if TYPE_CHECKING:
    from ...compiler.checkpoint.checkpoint import Checkpoint
    from ...compiler.planner.build_price import BuildPrice
    from ...recipes.recipe import Recipe
    from ...runtime.costs.facts import CpuFacts
    from ...runtime.costs.nodes import Node
    from .speed import Load
    from .subjects import Subject


@dataclass(frozen=True)
class Forecast:
    """What a load of `llmc bench` should show."""

    ttft: float
    """Seconds to the first token of every prompt."""
    prefill: float
    """Tokens/s of all prompts until then."""
    decode: float
    """Tokens/s of all prompts from then on."""


@dataclass
class Kernels:
    """Passes the progress of a build on, and counts the kernels that it compiles."""

    shown: Progress
    count: int = 0

    def stage(
        self, name: str, total: int | None = None, unit: str = BYTES
    ) -> AbstractContextManager[Callable[[int], None]]:
        """As of the progress that is shown."""
        self.count += (total or 0) if unit == "kernels" else 0
        return self.shown.stage(name, total, unit)


def facts_here(threads: int | None = None) -> CpuFacts | None:
    """The facts of this machine; a note says why those that exist are not used."""
    from ...runtime.costs.facts import load_facts

    return load_facts(threads, lambda said: console.note(f"llmc: {said}"))


def of_build(checkpoint: Checkpoint, recipe: Recipe, memory_limit: int | None) -> BuildPrice | None:
    """The price of a build that has not begun; None without facts, or if a format was not measured."""
    facts = facts_here()
    if facts is None or facts.build is None:
        return None
    from ...compiler.pipeline import context_of
    from ...compiler.planner.build_price import predict_build

    try:
        return predict_build(
            checkpoint,
            recipe,
            facts.build,
            context=context_of(recipe, checkpoint),
            threads=facts.threads,
            memory_limit=memory_limit,
        )
    except KeyError:
        return None


def of_loads(subject: Subject, threads: int, loads: Sequence[Load]) -> list[Forecast | None]:
    """What each load should show; None without facts, and for other profiles than those of one process on the CPU."""
    facts = facts_here(threads)
    if facts is None or subject.limits.target != "cpu" or subject.limits.ranks is not None:
        return [None] * len(loads)
    from ...runtime.costs.graph import nodes_of_model
    from ...runtime.cpu.executor import MAX_PREFILL
    from ...runtime.engine_file.file import EngineFile

    with EngineFile.open(subject.path) as engine:
        name = subject.limits.graph
        nodes = nodes_of_model(engine.section(name), what=f"{name} of {subject.path}")
    chunk = min(MAX_PREFILL, subject.limits.max_context, *subject.manifest.model.windows)
    return [_of_load(nodes, facts, load, chunk) for load in loads]


def _of_load(nodes: Sequence[Node], facts: CpuFacts, load: Load, chunk: int) -> Forecast:
    """Prompts are read one after the other; between two of them, those that are read make a token each."""
    from ...runtime.costs.price import decode_seconds, prefill_seconds

    prompt = prefill_seconds(nodes, facts, tokens=load.prompt_tokens, chunk=chunk)
    chunks = -(-load.prompt_tokens // chunk)
    between = sum(
        decode_seconds(nodes, facts, context=load.prompt_tokens, sequences=ready) * chunks
        for ready in range(1, load.batch)
    )
    middle = load.prompt_tokens + load.new_tokens // 2
    step = decode_seconds(nodes, facts, context=middle, sequences=load.batch)
    ttft = load.batch * prompt + between
    return Forecast(ttft, load.batch * load.prompt_tokens / ttft, load.batch / step)
