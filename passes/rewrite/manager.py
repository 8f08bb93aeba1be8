"""Runs passes: times them, verifies after each, dumps what changed, and leaves a reproducer when one crashes."""

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
    """What one pass did: rewrites, seconds, and the reason of its nearest miss."""

    phase: str
    name: str
    reason: str
    fired: int
    seconds: float
    nearest_miss: str


@dataclass(frozen=True)
class Phase:
    """A named list of passes and the operators allowed after it (inside it, `during` too)."""

    name: str
    passes: tuple[Pass, ...]
    operators: Collection[tuple[str, str]]
    during: Collection[tuple[str, str]] = ()


class PassCrash(Exception):
    """A pass failed: our bug. The message names the passes that ran before it and where the graph was written."""


def run_phase(phase: Phase, graph: Graph, dump: Path | None = None, first: int = 0) -> tuple[PassReport, ...]:
    """Run a phase's passes on `graph` in place. With `dump`, `NN-phase-pass.txt` is written for passes that fired.

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
