"""Linears of 1 to 16 tokens as a stream of weights, in CUDA C++: bulk copies into a ring that one warp keeps full.

Triton's kernel asks for weights after the launch before has ended, and waits between its loads; this one asks for a
ring of weights before that, and for more as soon as a stage was read.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from itertools import product
from typing import Any

from .......runtime.chips import MULTIPROCESSORS, RESERVED, chip
from ....call import Case, Kernel, KernelCall, Native, Operand, Suite, next_power
from .. import cases as linear_cases
from ..cases import LinearCase
from ..small import linear_small, linear_small_kernel
from ..tiles import NATIVE, Tile
from .fits import SM, stream_shared

KERNEL = Kernel("linear_stream", linear_small_kernel, SM, Native("linear/native/stream.cu"))


def tile_for(n: int, format: str, tokens: int, sm: int, *, squares: bool = False) -> Tile:
    """The tile with the most bytes of weights in rings on a multiprocessor, of one block or two; largest copies first.

    squares: the linear leaves sums of squares, so that 16 rows are too few. A stage in FP8 has no fewer columns: its
    loop has more to do beside the products.
    """
    columns = 1024 if next_power(tokens) <= 4 else 512
    wide = (columns,) if format == "fp8" else (columns // 2, columns // 4)
    shapes = product((32,) if squares else (32, 16), wide)
    tiles = [_longest(Tile(*shape, next_power(tokens), 1, 8, 2, NATIVE), n, format, sm) for shape in shapes]
    return max(tiles, key=lambda tile: _in_rings(tile, n, sm))


def _blocks(tile: Tile, n: int, sm: int) -> float:
    return min(2.0, -(-n // tile.block_n) / chip(sm).processors)


def _in_rings(tile: Tile, n: int, sm: int) -> float:
    """Weights in the rings of a multiprocessor."""
    return tile.block_n * tile.block_k * tile.stages * _blocks(tile, n, sm)


def _longest(tile: Tile, n: int, format: str, sm: int) -> Tile:
    """The tile with the longest ring."""
    room = MULTIPROCESSORS[sm].shared // (1 if _blocks(tile, n, sm) <= 1 else 2) - RESERVED
    fitting = [stages for stages in range(2, 17) if stream_shared(replace(tile, stages=stages), format) <= room]
    return replace(tile, stages=max(fitting, default=2))


def linear_stream(x: Operand, weights: tuple[Operand, ...], y: Operand, *, tile: Tile, **given: Any) -> KernelCall:
    """`linear_small` of a tile with the route "native"; a warp more than the tile has brings the weights."""
    return replace(linear_small(x, weights, y, tile=tile, **given), kernel=KERNEL, warps=tile.warps + 1)


_CASES = (
    LinearCase("fp8", 1, 70, 704, tile=Tile(32, 128, 1, 1, 4, 3, NATIVE), bias=True, residual=True),
    LinearCase("fp8", 3, 134, 448, activation="silu", bias=True, tile=Tile(32, 128, 4, 1, 8, 2, NATIVE)),
    LinearCase("fp8", 16, 40, 448, act="f16", y="f32", tile=Tile(32, 256, 16, 1, 8, 2, NATIVE)),
    LinearCase("fp8", 1, 192, 320, residual=True, tile=Tile(64, 128, 1, 1, 4, 3, NATIVE), fused=True),
    LinearCase("fp8", 11, 128, 448, bias=True, activation="silu", tile=Tile(32, 256, 16, 1, 8, 2, NATIVE), fused=True),
    LinearCase("dense", 3, 70, 1056, bias=True, residual=True, tile=Tile(32, 128, 4, 1, 4, 3, NATIVE), fused=True),
    LinearCase("dense", 7, 130, 352, tile=Tile(64, 128, 8, 1, 4, 2, NATIVE)),
    LinearCase("dense", 2, 70, 160, act="f16", weight="f16", residual=True, tile=Tile(32, 64, 2, 1, 4, 4, NATIVE)),
    LinearCase("dense", 1, 96, 256, activation="gelu_pytorch_tanh", tile=Tile(16, 64, 1, 1, 8, 3, NATIVE)),
)


def _cases() -> Iterator[Case]:
    for spec in _CASES:
        yield linear_cases.case(linear_stream, spec)


def _calls(sm: int) -> Iterator[KernelCall]:
    if sm != SM:
        return
    for format in ("fp8", "dense"):
        for n, k in linear_cases.LLAMA_LAYERS:
            yield _model_call(n, k, format, 1, sm)
        for tokens in (8, 16):
            yield _model_call(*linear_cases.GATE_UP, format, tokens, sm)
    yield _model_call(128256, 4096, "dense", 1, sm)


def _model_call(n: int, k: int, format: str, tokens: int, sm: int) -> KernelCall:
    tile = tile_for(n, format, tokens, sm, squares=n == linear_cases.HIDDEN)
    return linear_cases.model_call(linear_stream, n, k, format, "bf16", tokens, sm, tile=tile)


def pairs(sm: int) -> Iterator[tuple[str, str, int, KernelCall, KernelCall]]:
    """(name, unit of work, tokens, call, Triton's call) of the linears of a decode step of one sequence."""
    for format in ("fp8", "dense"):
        for n, k in (*linear_cases.LLAMA_LAYERS, *([(128256, 4096)] if format == "dense" else [])):
            other = linear_cases.model_call(linear_small, n, k, format, "bf16", 1, sm)
            yield f"{format} {n} x {k}, 1 token", "stream", 1, _model_call(n, k, format, 1, sm), other


SUITE = Suite((KERNEL,), _cases, _calls)
