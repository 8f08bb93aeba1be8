"""Rotary embeddings whose frequencies depend on the length of the sequence (longrope, dynamic NTK): their tables.

All positions of a sequence are rotated with the table of its length, as transformers 5 does without a cache
(`modeling_rope_utils.py`, dynamic_rope_update). A table has a number: 0 for short sequences, else the shortest length
that it is for. The scheduler asks for the number, an executor for the rows (`rope_tables.py`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

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
