"""The type of a parameter that is a matrix which a kernel reads in tiles: its launch passes a tensor map of it.

A tensor map (CUtensorMap, 128 bytes) is passed by value. It holds the matrix's address and sizes; the driver's library
encodes it without a call to the GPU. It must lie at a multiple of 64 bytes while it is encoded, which the bindings do
not see to, so the library is called directly.
"""

from __future__ import annotations

import ctypes
import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache, lru_cache

from ..errors import ResourceError
from .driver import Driver

BYTES, ALIGNMENT = 128, 64
"""Of a CUtensorMap."""
ROW = 128
"""Bytes of a tile's row: the widest that is swizzled."""
_FUNCTION = "cuTensorMapEncodeTiled"
_SINCE = 12000
_U8, _PLAIN, _SWIZZLE_128, _PROMOTE_256, _ZERO = 0, 0, 3, 3, 0
"""CU_TENSOR_MAP_DATA_TYPE_UINT8, _INTERLEAVE_NONE, _SWIZZLE_128B, _L2_PROMOTION_L2_256B, _FLOAT_OOB_FILL_NONE."""
_ENCODE = ctypes.CFUNCTYPE(
    *(ctypes.c_int, ctypes.c_void_p, ctypes.c_int, ctypes.c_uint32, ctypes.c_void_p),
    *(ctypes.POINTER(ctypes.c_uint64), ctypes.POINTER(ctypes.c_uint64)),
    *(ctypes.POINTER(ctypes.c_uint32), ctypes.POINTER(ctypes.c_uint32)),
    *(ctypes.c_int, ctypes.c_int, ctypes.c_int, ctypes.c_int),
)
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
    return tensor_map(driver.symbol(_FUNCTION, _SINCE), int(value), rows, columns, tile)


@lru_cache(1 << 14)  # steps ask for the same maps again and again
def tensor_map(function: int, address: int, rows: int, columns: int, tile: MatrixTile) -> bytes:
    """The tensor map of a matrix u8 [rows, columns]; elements of a tile outside of it are 0.

    function: the address of cuTensorMapEncodeTiled. A tile's row, of 128 bytes, lies swizzled in shared memory.

    Raises:
        ResourceError: the driver refuses the matrix.
    """
    room = ctypes.create_string_buffer(BYTES + ALIGNMENT)
    at = -(-ctypes.addressof(room) // ALIGNMENT) * ALIGNMENT
    sizes, stride = (ctypes.c_uint64 * 2)(columns, rows), (ctypes.c_uint64 * 1)(columns)
    box, steps = (ctypes.c_uint32 * 2)(tile.columns, tile.rows), (ctypes.c_uint32 * 2)(1, 1)
    kinds = _PLAIN, _SWIZZLE_128, _PROMOTE_256, _ZERO
    if status := _ENCODE(function)(at, _U8, 2, address, sizes, stride, box, steps, *kinds):
        raise ResourceError(
            f"cannot make a tensor map of {rows} x {columns} bytes in tiles of {tile}", found=f"CUDA error {status}"
        )
    return ctypes.string_at(at, BYTES)
