"""Computes the rows of rotary tables that depend on the length of the sequence; apart from `rope.py`, which is read
without numpy."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

import numpy as np

from .rope import LengthRope


def frequencies(rope: LengthRope, table: int) -> np.ndarray:
    """Radians per position, ``f64 [D / 2]``, in the table of this number."""
    short = np.array(rope.short)
    if table <= rope.original:
        return short
    if rope.long:
        return np.array(rope.long)
    # theta' = theta * growth^(D / (D - 2)), and the frequencies are theta'^(-2i / D)
    growth = rope.factor * table / rope.original - (rope.factor - 1)
    return short * growth ** (-np.arange(len(short)) / (len(short) - 1))


def rows_of(rope: LengthRope, table: int, positions: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Cosines and sines of these positions, ``f32 [rows, D / 2]``.

    Angles are float32 products, as the published models compute them.
    """
    angles = np.outer(positions.astype(np.float32), _rounded(rope, table)).astype(np.float64)
    return (np.cos(angles) * rope.scale).astype(np.float32), (np.sin(angles) * rope.scale).astype(np.float32)


@lru_cache(maxsize=64)
def _rounded(rope: LengthRope, table: int) -> np.ndarray:
    return frequencies(rope, table).astype(np.float32)


def fill_tables(
    ropes: Sequence[LengthRope], arrays: Sequence[tuple[np.ndarray, np.ndarray]], tables: np.ndarray, at: np.ndarray
) -> None:
    """Writes the rows of tokens at positions `at` ``[T]`` of sequences with these `tables` ``[T]``.

    `arrays` holds cosines and sines ``f32 [T or more, D / 2]`` for each rope.
    """
    for table in np.unique(tables).tolist():
        chosen = np.flatnonzero(tables == table)
        for rope, (cos, sin) in zip(ropes, arrays, strict=True):
            cos[chosen], sin[chosen] = rows_of(rope, table, at[chosen])
