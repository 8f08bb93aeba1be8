"""Places a program's buffers in one arena: buffers that are not live at the same time share bytes (greedy by size).

Method: Pisarchyk and Lee, "Efficient memory management for deep neural net inference" (2020): the largest buffer
first, each at the lowest offset that is free during its whole lifetime.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from ....runtime.plan.budget import aligned


@dataclass(frozen=True)
class Lifetime:
    """A buffer's size in bytes, and the indices of the first and last launch that use it."""

    bytes: int
    first: int
    last: int


def place_buffers(lives: Mapping[str, Lifetime]) -> tuple[dict[str, int], int]:
    """(offset by name, size of the arena), in bytes; equal inputs give equal offsets."""
    offsets: dict[str, int] = {}
    for name in sorted(lives, key=lambda n: (-lives[n].bytes, n)):
        life, offset = lives[name], 0
        taken = sorted(
            (offsets[other], offsets[other] + lives[other].bytes)
            for other in offsets
            if lives[other].first <= life.last and life.first <= lives[other].last
        )
        for start, stop in taken:
            if offset + life.bytes <= start:
                break
            offset = max(offset, aligned(stop))
        offsets[name] = offset
    arena = max((offsets[name] + lives[name].bytes for name in lives), default=0)
    return offsets, aligned(arena)
