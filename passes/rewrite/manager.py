"""Runs a phase of passes: times each, verifies and dumps the graph after it, and reports what it did."""

from __future__ import annotations

import time
from collections.abc import Collection
from dataclasses import dataclass
from shlex import quote

from ...runtime.errors import LlmcError
from ...runtime.guard.shortage import shortage
from ...runtime.progress import debug
from ..graph.graph import Graph
from ..graph.verify import late_reads, verify
from .dump import Dump, PassReport
from .rule import Pass


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


def crash_of(error: Exception, said: str) -> Exception:
    """What to raise for an error of a pass: that this machine lacks something, or that the pass crashed."""
    return shortage(error) or PassCrash(said)


def run_phase(
    phase: Phase, graph: Graph, dump: Dump | None = None, *, first: int = 0, profile: str = ""
) -> tuple[PassReport, ...]:
    """Run the passes of a phase on `graph` in place, from number `first` on. `profile` is "" for model passes.

    Raises:
        PassCrash: a pass or the verification after it failed.
    """
    reports: list[PassReport] = []
    names = [item.name for item in phase.passes]
    label = f"{profile}/{phase.name}" if profile else phase.name
    for index, item in enumerate(phase.passes[first:], first):
        start = time.perf_counter()
        try:
            outcome = item.run(graph)
            if outcome.fired and late_reads(graph):  # seldom, and to look costs an eighth of sorting
                graph.body.sort()
            verify(graph, phase.operators if index == len(names) - 1 else {*phase.operators, *phase.during})
        except LlmcError:
            raise
        except Exception as error:
            where = "run again with --dump DIR to keep the graph before it"
            if dump is not None:
                path = dump.crash(profile, phase.name, item.name)
                where = f"the graph before it is in {path}: llmc passes --from {quote(str(path))}"
            ran = ", ".join(names[:index]) or "none"
            crash = f"pass {item.name} of phase {phase.name} failed: {error}; passes before it: {ran}; {where}"
            raise crash_of(error, crash) from error
        seconds = time.perf_counter() - start
        miss = f"{outcome.miss.reason} (at {outcome.at})" if outcome.miss is not None else ""
        report = PassReport(profile, phase.name, item.name, item.reason, outcome.fired, seconds, miss)
        debug(1 if report.fired else 2, f"pass {label} {item.name}: fired {report.fired}, {1e3 * seconds:.1f} ms")
        if miss:
            debug(2, f"  nearest miss of {item.name}: {miss}")
        if dump is not None:
            dump.keep(report, graph, names[index + 1] if index + 1 < len(names) else "")
        reports.append(report)
    return tuple(reports)
