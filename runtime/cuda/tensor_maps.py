"""The type of a parameter that is a matrix which a kernel reads in tiles: its launch passes a tensor map of it.

A tensor map (CUtensorMap, 128 bytes) is passed by value. It holds the matrix's address and sizes, so it is encoded for
each launch, by the driver's library, without a call to the GPU.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache

from .driver import Driver

BYTES, ALIGNMENT = 128, 64
"""Of a CUtensorMap."""
ROW = 128
"""Bytes of a tile's row: the widest that is swizzled."""
_TYPE = re.compile(r"u8\[(\d+),(\d+)\]")


@dataclass(frozen=True)
class MatrixTile:
    """The rows, and bytes of a row, that one copy reads."""

    rows: int
    columns: int

    def __str__(self) -> str:
        """The type of the parameter, such as "u8[128,128]"."""
        return f"u8[{self.rows},{self.columns}]"


@cache
def tile_of(kind: str) -> MatrixTile | None:
    """The tile of a parameter's type, or None if it is no matrix."""
    found = _TYPE.fullmatch(kind)
    return MatrixTile(int(found[1]), int(found[2])) if found else None


def passed(driver: Driver, kind: str, value: int | float, shape: Sequence[int]) -> int | float | bytes:
    """What a launch passes for a parameter: a number or address as it is, or the tensor map of a matrix u8 at `value`.

    Raises:
        ResourceError: the driver refuses the matrix.
    """
    tile = tile_of(kind)
    if tile is None:
        return value
    rows, columns = shape
    return driver.tensor_map(int(value), rows, columns, tile.rows, tile.columns)
