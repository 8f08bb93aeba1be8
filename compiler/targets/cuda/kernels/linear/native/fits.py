"""Which linears and tiles the kernels in CUDA C++ can have; all others keep Triton's."""

from __future__ import annotations

from .......runtime.chips import SHARED
from ....call import Operand, next_power
from ..parts.fused import SQUARES
from ..tiles import NATIVE, Tile, wrong_tile

SM = 90
"""The compute capability whose instructions they have (sm_90a)."""
STREAM_TOKENS = 16
"""Most tokens of a stream of weights: two tiles of 8 of the tensor cores' columns."""
ITEM = {"fp8": 1, "dense": 2}
"""Bytes of a weight by the formats that are streamed."""
_BARRIERS = 16
"""Bytes of a stage's two barriers."""
_ROW = 128
"""Bytes of a row in shared memory that is swizzled, and a multiple of which a stream's rows are."""


def wrong(
    kind: str, n: int, k: int, format: str, max_tokens: int, tile: Tile, sm: int, *, squares: bool = False
) -> str:
    """Why a linear [n, k] cannot have this tile by its route, or "": `wrong_tile` for all routes.

    squares: it leaves sums of the squares of its result (`Fused`).
    """
    if tile.route != NATIVE:
        return wrong_tile(kind, n, k, format, max_tokens, tile, sm)
    if sm != SM:
        return f"the route {NATIVE} is for sm_{SM} alone"
    if tile.splits != 1:
        return f"splits {tile.splits} is not 1, as the route {NATIVE} needs"
    if squares and tile.block_n % SQUARES:
        return f"a block of {tile.block_n} rows is not a multiple of {SQUARES}, the rows of a sum of squares"
    if kind == "small":
        said = _wrong_stream(k, format, max_tokens, tile)
    elif kind == "fp8":
        said = _wrong_gemm(k, tile)
    else:
        return f"no kernel of the kind {kind} by the route {NATIVE}"
    if said:
        return said
    shared = stream_shared(tile, format) if kind == "small" else gemm_shared(tile)
    return f"{shared} bytes of shared memory, of at most {SHARED[sm]}" if shared > SHARED[sm] else ""


def unlike(x: Operand, weights: tuple[Operand, ...]) -> str:
    """Why a linear of these operands cannot have a native kernel with any tile, or ""."""
    if len(weights) == 1 and (weights[0].dtype != x.dtype or x.item_bytes != 2):
        return f"weights {weights[0].dtype} and activations {x.dtype}: not the same 16 bits"
    if len(weights) == 2 and len(weights[1].shape) != 1:
        return "scales of blocks"
    return ""


def stream_shared(tile: Tile, format: str) -> int:
    """Bytes of shared memory of a block of `stream.cu`: the ring, the warps' sums, a norm for each token, barriers."""
    item = ITEM[format]
    stage = tile.block_n * tile.block_k * item + 64 + tile.block_m * (tile.block_k * 2 + (16 if item == 1 else 64))
    return tile.stages * (stage + _BARRIERS) + (tile.warps * tile.block_n + 1) * tile.block_m * 4


def gemm_shared(tile: Tile) -> int:
    """Bytes of shared memory of a block of `gemm.cu`: the ring, and barriers."""
    return tile.stages * ((tile.block_n + tile.block_m) * tile.block_k + _BARRIERS)


def _wrong_stream(k: int, format: str, max_tokens: int, tile: Tile) -> str:
    if format not in ITEM:
        return f"a stream of weights in {format}, not in {' or '.join(ITEM)}"
    if max_tokens > STREAM_TOKENS or tile.block_m != next_power(max_tokens):
        return f"block_m {tile.block_m} is not the {max_tokens} tokens, up to {STREAM_TOKENS}, as a power of two"
    if tile.block_n not in (16, 32, 64) or tile.warps not in (4, 8):
        return "a stream has 16, 32 or 64 rows, and 4 or 8 warps that multiply"
    item = ITEM[format]
    if tile.block_k * item % _ROW or not 1 <= tile.block_k * item <= 4096 or k * item % 64:
        return f"columns in blocks of {tile.block_k} of {k}: not {_ROW} bytes, or the row not a multiple of 64"
    return "" if 2 <= tile.stages <= 16 else f"stages {tile.stages} is not from 2 to 16"


def _wrong_gemm(k: int, tile: Tile) -> str:
    if tile.block_k != _ROW or tile.block_n not in (128, 256) or tile.block_m not in (64, 128):
        return "a block has 128 or 256 rows, 64 or 128 tokens, 128 columns"
    if tile.warps != tile.block_m // 16:
        return f"warps {tile.warps} is not {tile.block_m // 16}: a warpgroup for each 64 tokens"
    if k % 16:
        return f"rows of {k} bytes are not a multiple of 16"
    return "" if 2 <= tile.stages <= 8 else f"stages {tile.stages} is not from 2 to 8"
