"""Runs a phase of passes: times each, verifies the graph after it, dumps changes, and keeps the graph of a crash."""

from __future__ import annotations

import time
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path

from ...runtime.errors import LlmcError
from ..graph.graph import Graph
from ..graph.verify import verify
from .rule import Pass


@dataclass(frozen=True)
class PassReport:
    """What one pass did to a graph."""

    phase: str
    name: str
    reason: str
    """The first line of the pass's docstring."""
    fired: int
    """The number of rewrites."""
    seconds: float
    nearest_miss: str
    """Why the place that came nearest to a rewrite was left alone, or ""."""


@dataclass(frozen=True)
class Phase:
    """A named list of passes."""

    name: str
    passes: tuple[Pass, ...]
    operators: Collection[tuple[str, str]]
    """The operators, as (domain, type), that the graph may have after the phase."""
    during: Collection[tuple[str, str]] = ()
    """More operators, which it may have between the passes."""


class PassCrash(Exception):
    """A pass failed: a bug of llmc. The message names the passes before it and the file with its input graph."""


def run_phase(phase: Phase, graph: Graph, dump: Path | None = None, first: int = 0) -> tuple[PassReport, ...]:
    """Run a phase's passes on `graph` in place. With `dump`, the graph after each pass that fired is written there, as
    `NN-phase-pass.txt`; NN counts from `first`.

    Raises:
        PassCrash: a pass or the verification after it failed.
    """
    reports: list[PassReport] = []
    allowed = {*phase.operators, *phase.during}
    for index, item in enumerate(phase.passes):
        before = graph.text() if dump is not None else ""
        start = time.perf_counter()
        try:
            outcome = item.run(graph)
            if outcome.fired:
                graph.body.sort()
            verify(graph, phase.operators if index == len(phase.passes) - 1 else allowed)
        except LlmcError:
            raise
        except Exception as error:
            raise PassCrash(_crash(phase, index, before, dump, error)) from error
        seconds = time.perf_counter() - start
        miss = f"{outcome.miss.reason} (at {outcome.at})" if outcome.miss is not None else ""
        reports.append(PassReport(phase.name, item.name, item.reason, outcome.fired, seconds, miss))
        if dump is not None and outcome.fired:
            _write(dump / f"{first + index:02d}-{phase.name}-{item.name}.txt", graph.text())
    return tuple(reports)


def _crash(phase: Phase, index: int, before: str, dump: Path | None, error: Exception) -> str:
    names = [item.name for item in phase.passes]
    ran = ", ".join(names[:index]) or "none"
    where = "run again with --dump DIR to keep the graph before it"
    if dump is not None:
        path = dump / f"crash-{phase.name}-{names[index]}.txt"
        _write(path, before)
        where = f"the graph before it is in {path}"
    return f"pass {names[index]} of phase {phase.name} failed: {error}; passes before it: {ran}; {where}"


def _write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")
