"""The calls to a lent GPU: what each does, in order, and how long it may take."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from bringup import agree, cases, ceilings, decode, launches, loading, machine
from bringup.step import Step


@dataclass(frozen=True)
class Call:
    """Steps in order. seconds: of all of them, the last ones being left out where it does not suffice."""

    seconds: float
    steps: tuple[Step, ...]


CALLS: Mapping[str, Call] = {
    "first": Call(
        140,
        (machine.STEP, ceilings.STEP, loading.STEP, cases.STEP, agree.STEP, decode.STEP, launches.STEP),
    ),
}
"""first: does anything run, and what is the ceiling?"""
