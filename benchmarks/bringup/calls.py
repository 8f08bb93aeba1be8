"""The calls to a lent GPU: what each does, in order, and how long it may take."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

from bringup import (
    agree,
    batches,
    cases,
    ceilings,
    counters,
    decode,
    launches,
    loading,
    machine,
    peers,
    prefill,
    sweep,
    throughput,
    tuned,
)
from bringup.step import Step


@dataclass(frozen=True)
class Call:
    """Steps in order. seconds: of all of them, the last ones being left out where it does not suffice."""

    seconds: float
    steps: tuple[Step, ...]


CEILINGS = replace(ceilings.STEP, seconds=8)
"""Measured again in every call: what its own numbers are held against."""
CALLS: Mapping[str, Call] = {
    "first": Call(
        140,
        (machine.STEP, ceilings.STEP, loading.STEP, cases.STEP, agree.STEP, decode.STEP, launches.STEP),
    ),
    "speed": Call(
        290,
        (
            *(CEILINGS, batches.STEP, *batches.TABLES, sweep.DECODING, sweep.PROMPTS, peers.STEP),
            *(throughput.STEP, *throughput.TABLES, throughput.SAMPLING, prefill.STEP, counters.STEP),
        ),
    ),
    "tuned": Call(170, (CEILINGS, tuned.CASES, tuned.AGREE, batches.TUNED, tuned.ENGINE)),
    counters.CALL: Call(30, counters.LAUNCHED),
}
"""first: does anything run, and what is the ceiling? speed: how fast is it, and with which tiles? tuned: is what has
changed right, how fast are tuned plans, and what does a whole engine do? The last is what a profiler looks at.
"""
