"""Tiles of the native kernels to measure, and the linears whose evidence is held (`../../../evidence/compare.py`)."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import product

from ....call import KernelCall, Operand
from ..tiles import NATIVE, Tile
from . import gemm, stream
from .fits import ITEM, SM, unlike, wrong

_STAGES = range(16, 1, -1)


def tiles(
    kind: str,
    n: int,
    k: int,
    format: str,
    max_tokens: int,
    sm: int,
    x: Operand,
    weights: Sequence[Operand],
    *,
    squares: bool = False,
) -> list[Tile]:
    """The tiles to measure beside Triton's for a linear of these operands, each with the longest ring that fits.

    squares: the linear leaves sums of squares (`wrong`).
    """
    if sm != SM or unlike(x, tuple(weights)):
        return []
    if kind == "small" and format not in ITEM:
        return []
    if kind == "small":
        base = stream.tile_for(n, format, max_tokens, sm, squares=squares)
        shapes = [(rows, base.block_k // part, base.block_m, 8) for rows, part in product((16, 32, 64), (1, 2))]
    else:
        base = None
        shapes = [(rows, 128, tokens, tokens // 16) for rows, tokens in product((128, 256), (64, 128))]
    longest = [
        next((one for one in rings if not wrong(kind, n, k, format, max_tokens, one, sm, squares=squares)), None)
        for shape in shapes
        for rings in [[Tile(*shape[:3], 1, shape[3], stages, NATIVE) for stages in _STAGES]]
    ]
    shorter = [replace(base, stages=base.stages - 1)] if base is not None and base.stages > 2 else []
    every = [*([base] if base is not None else []), *(one for one in longest if one is not None), *shorter]
    possible = dict.fromkeys(every)
    return [one for one in possible if not wrong(kind, n, k, format, max_tokens, one, sm, squares=squares)]


def pairs() -> Iterator[tuple[str, str, int, KernelCall, KernelCall]]:
    """(name, unit of work, tokens, native call, Triton's call)."""
    yield from stream.pairs(SM)
    yield from gemm.pairs(SM)
