"""The process that measures: runs the items that have no outcome yet, in order, and writes each one down."""

from __future__ import annotations

import re
import time
import traceback
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from itertools import chain
from typing import Any

from bringup.bench import Bench
from bringup.step import Item, Step
from llmc.runtime.errors import LlmcError

RESTART = 75
"""Exit code of a process whose context no longer works: another one goes on."""
_LEAST = 0.2
"""Seconds below which no item is begun."""
_STICKY = {
    *("ILLEGAL_ADDRESS", "ILLEGAL_INSTRUCTION", "MISALIGNED_ADDRESS", "INVALID_ADDRESS_SPACE", "INVALID_PC"),
    *("HARDWARE_STACK_ERROR", "LAUNCH_FAILED", "LAUNCH_TIMEOUT", "ASSERT", "ECC_UNCORRECTABLE", "UNKNOWN"),
}
"""CUDA errors after which a context gives only errors."""


def items(steps: Sequence[Step], bench: Bench) -> Iterator[tuple[Step, str, Item]]:
    """Every item with its step and its name "step/item". A step whose items cannot be told is one that says why."""
    for step in steps:
        try:
            for item in step.items(bench):
                yield step, f"{step.name}/{item.name}", item
        except Exception as error:
            told = described(error)

            def fails(_: Bench, told: Mapping[str, Any] = told) -> Mapping[str, Any]:
                raise RuntimeError(told["error"])

            yield step, f"{step.name}/items", Item("items", fails)


def perform(steps: Sequence[Step], bench: Bench, until: float) -> int:
    """Run what has no outcome yet; 0, or RESTART. until: when the call ends, on the machine's monotonic clock.

    What no longer fits into its step's seconds waits until every step has had its turn, and has what they left.
    """
    journal = bench.journal
    if "card" in journal.head:  # an item's limit does not include creating a context
        with suppress(LlmcError):
            bench.driver.use()
    waiting: list[tuple[Step, str, Item]] = []
    before: Step | None = None
    for step, name, item in chain(items(steps, bench), waiting):
        if name in journal.outcomes:
            continue
        if step is not before:
            bench.release()
            before = step
        now = time.monotonic()
        late = journal.began.get(step.name, now) + step.seconds <= now
        if until - now < _LEAST:
            journal.end(name, {"left out": "the time of the call is over"})
        elif late and not any(other is item for _, _, other in waiting):
            waiting.append((step, name, item))
        else:
            journal.begin(name, min(item.limit, until - now))
            outcome = _run(item, bench)
            journal.end(name, outcome)
            if outcome.get("sticky"):
                return RESTART
    return 0


def leave_out(steps: Sequence[Step], bench: Bench, why: str) -> None:
    """Name every item that has no outcome, once no process measures any more."""
    bench.journal.refresh()
    for _, name, _ in items(steps, bench):
        if name not in bench.journal.outcomes:
            bench.journal.end(name, {"left out": why})


def _run(item: Item, bench: Bench) -> dict[str, Any]:
    began = time.perf_counter()
    try:
        found: dict[str, Any] = {"result": dict(item.run(bench))}
    except Exception as error:
        found = described(error)
        found["sticky"] = _broken(bench, found["cuda"])
    rung = bench.journal.head.get("rung")
    return {"seconds": time.perf_counter() - began, **({"rung": rung} if rung else {}), **found}


def described(error: BaseException) -> dict[str, Any]:
    """An error as an outcome: its text, the CUDA error it names, and the line that raised it."""
    while isinstance(error.__context__, LlmcError) and not error.__suppress_context__:
        error = error.__context__  # later errors while freeing are consequences of the first
    named = re.search(r"CUDA_ERROR_(\w+)", str(error))
    frames = traceback.extract_tb(error.__traceback__)
    where = f"{frames[-1].filename.rpartition('/')[2]}:{frames[-1].lineno}" if frames else ""
    text = str(error) if isinstance(error, LlmcError) else f"{type(error).__name__}: {error}"
    return {"error": text[:1500], "cuda": named[1] if named else None, "where": where}


def _broken(bench: Bench, cuda: str | None) -> bool:
    """True if every further call in the context fails."""
    if not bench.started or cuda is None:
        return False
    if cuda in _STICKY:
        return True
    try:
        bench.driver.wait(bench.stream)
    except LlmcError:
        return True
    return False
