"""Rotary embeddings whose frequencies depend on the length of the sequence (longrope, dynamic NTK): their tables.

All positions of a sequence are rotated with the table of its length, as transformers 5 does without a cache
(`modeling_rope_utils.py`, dynamic_rope_update). A table has a number: 0 for short sequences, else the shortest length
that it is for. The scheduler asks for the number, an executor for the rows.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from ..errors import EngineError

POSITIONS = "rope_positions"
"""Graph input i64 [B, S]: for each token, the row of the tables below."""


def table_inputs(number: int) -> tuple[str, str]:
    """Names of the inputs f32 [rows, D / 2] that hold the cosines and the sines of a model's rope of this number."""
    suffix = f".{number}" if number else ""
    return f"rope_cos{suffix}", f"rope_sin{suffix}"


@dataclass(frozen=True)
class LengthRope:
    """A rope with one set of frequencies for sequences of at most `original` positions, and others for longer ones."""

    original: int
    short: tuple[float, ...]
    """Frequencies in radians per position, of D / 2 pairs."""
    long: tuple[float, ...] = ()
    """LongRoPE (arXiv 2402.13753): the frequencies of all longer sequences."""
    factor: float = 1.0
    """Without `long`, NTK-aware scaling: the base of the wavelengths grows with the length."""
    scale: float = 1.0
    """Factor of cosines and sines."""

    def table(self, length: int) -> int:
        """The number of the table of a sequence of `length` positions."""
        if length <= self.original:
            return 0
        return self.original + 1 if self.long else length

    def frequencies(self, table: int) -> np.ndarray:
        """Radians per position, ``f64 [D / 2]``, in the table of this number."""
        short = np.array(self.short)
        if table <= self.original:
            return short
        if self.long:
            return np.array(self.long)
        # theta' = theta * growth^(D / (D - 2)), and the frequencies are theta'^(-2i / D)
        growth = self.factor * table / self.original - (self.factor - 1)
        return short * growth ** (-np.arange(len(short)) / (len(short) - 1))

    def rows(self, table: int, positions: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Cosines and sines of these positions, ``f32 [rows, D / 2]``.

        Angles are float32 products, as the published models compute them.
        """
        angles = np.outer(positions.astype(np.float32), _frequencies(self, table)).astype(np.float64)
        return (np.cos(angles) * self.scale).astype(np.float32), (np.sin(angles) * self.scale).astype(np.float32)


@lru_cache(maxsize=64)
def _frequencies(rope: LengthRope, table: int) -> np.ndarray:
    return rope.frequencies(table).astype(np.float32)


def table_of(ropes: Sequence[LengthRope], length: int) -> int:
    """The number of the tables that all ropes of a model use for a sequence of `length` positions."""
    return max([rope.table(length) for rope in ropes], default=0)


def check_ropes(ropes: Sequence[LengthRope], what: str) -> None:
    """Checks that the formulas have values.

    Raises:
        EngineError: a number is out of range; names `what`.
    """
    for rope in ropes:
        numbers = (*rope.short, *rope.long, rope.factor, rope.scale)
        sizes = not rope.short or (rope.long and len(rope.long) != len(rope.short))
        if sizes or rope.original < 1 or rope.factor < 1 or not all(0 <= one < float("inf") for one in numbers):
            raise EngineError(f"expected frequencies of rotary embeddings in {what}", found=f"{rope}"[:200])
        if not rope.long and len(rope.short) < 2:
            raise EngineError(f"expected a rope of at least two frequencies in {what}", found=f"{rope}"[:200])


def fill_tables(
    ropes: Sequence[LengthRope], arrays: Sequence[tuple[np.ndarray, np.ndarray]], tables: np.ndarray, at: np.ndarray
) -> None:
    """Writes the rows of tokens at positions `at` ``[T]`` of sequences with these `tables` ``[T]``.

    `arrays` holds cosines and sines ``f32 [T or more, D / 2]`` for each rope.
    """
    for table in np.unique(tables).tolist():
        chosen = np.flatnonzero(tables == table)
        for rope, (cos, sin) in zip(ropes, arrays, strict=True):
            cos[chosen], sin[chosen] = rope.rows(table, at[chosen])
