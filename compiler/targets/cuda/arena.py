"""Places a program's buffers in one arena: buffers that are not live at the same time share bytes (greedy by size).

Method: Pisarchyk and Lee, "Efficient memory management for deep neural net inference" (2020): the largest buffer
first, each at the lowest offset that is free during its whole lifetime.
"""

from __future__ import annotations

from bisect import insort
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
    placed: list[tuple[int, int, Lifetime]] = []  # by their bytes, from start to stop
    for name in sorted(lives, key=lambda n: (-lives[n].bytes, n)):
        life, offset = lives[name], 0
        for start, stop, other in placed:
            if other.first <= life.last and life.first <= other.last:
                if offset + life.bytes <= start:
                    break
                offset = max(offset, aligned(stop))
        offsets[name] = offset
        insort(placed, (offset, offset + life.bytes, life), key=lambda one: one[:2])
    arena = max((offsets[name] + lives[name].bytes for name in lives), default=0)
    return offsets, aligned(arena)
