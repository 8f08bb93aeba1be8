"""Tiles of a layer's experts: two linears over the same blocks of rows, each with those of dense layers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from ......runtime.chips import SHARED
from ...call import Operand
from ..linear.parts.common import tile_for
from ..linear.tiles import COUNTERS, Tile

SMALL_M = 64
"""Up to this many rows, an expert is bound by reading its weights."""
_LARGEST_M, _ROWS_FOR_LARGEST = 128, 192
"""An expert's last block is half full on average: of fewer rows the largest blocks would hold too few."""


@dataclass(frozen=True)
class Product:
    """One of the linears: its stored tensors [E, ...], rows and columns of an expert, format."""

    weights: tuple[Operand, ...]
    n: int
    k: int
    format: str


def tiles_of(products: Sequence[Product], *, each: int, busy: int, sm: int) -> list[Tile]:
    """The tile of every linear, for experts of `each` rows on average, `busy` of which have any; block_m is the same.

    The blocks of all experts share the chip, so a linear is as one of busy * n rows.
    """
    kind = "small" if each <= SMALL_M else "large"
    found = [tile_for(kind, one.weights, one.n * busy, one.k, one.format, each, sm) for one in products]
    # With gathered rows a third stage makes some formats spill on chips with little shared memory.
    most = 2 if SHARED[sm] <= 100 << 10 else max(tile.stages for tile in found)
    block_m = min(_LARGEST_M if each >= _ROWS_FOR_LARGEST else SMALL_M, *(tile.block_m for tile in found))
    return [replace(one, stages=min(one.stages, most)) for one in (_with_rows(tile, block_m) for tile in found)]


def _with_rows(tile: Tile, block_m: int) -> Tile:
    """The tile with smaller blocks of rows: one of those that no chip spills (`linear/many.py`), of one part of K."""
    if tile.block_m == block_m:
        return tile
    whole = replace(tile, block_m=block_m, splits=1)
    return whole if block_m == _LARGEST_M else replace(whole, block_n=64, warps=4)


def whole_if_many(tile: Tile, n: int, blocks: int) -> Tile:
    """The tile, without parts of K where there are more blocks of results than counters."""
    return tile if -(-n // tile.block_n) * blocks <= COUNTERS else replace(tile, splits=1)
