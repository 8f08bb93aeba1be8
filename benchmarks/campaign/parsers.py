"""Damaged input for every reader: only LlmcErrors may come out, in bounded time and memory, and no process may die."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Any

from .targets import targets
from .watch import Found, hunt, judge

LIMIT_S = 600.0
"""Seconds of all targets together; what is not reached by then is not counted."""


def run(share: float, seed: int, folder: Path) -> dict[str, Any]:
    """All targets after each other, each on all CPUs."""
    count = len(os.sched_getaffinity(0))
    known = targets(folder, folder)
    ends = time.monotonic() + LIMIT_S
    found: dict[str, Found] = {}
    for index, target in enumerate(known.values()):
        cases = max(count, round(target.cases * share))
        each = (ends - time.monotonic()) / (len(known) - index)
        ranges = [range(first, cases, count) for first in range(count)]
        # a reader that is slow leaves the others their time, and one that is quick leaves its rest
        found[target.name] = hunt(target, seed, ranges, folder / "notes", time.monotonic() + each)
    return {
        "targets": {name: {"of": round(known[name].cases * share), **one.to_json()} for name, one in found.items()},
        "cases": sum(one.cases for one in found.values()),
        "wrong": [note for one in found.values() for note in one.wrong],
    }


def again(name: str, seed: int, case: int, folder: Path) -> None:
    """One case as the campaign made it: its bytes and what comes of them."""
    target = targets(folder, folder)[name]
    data = target.case(seed, case)
    print(data[:4000])
    print(judge(target, data))
    target.read(data)
