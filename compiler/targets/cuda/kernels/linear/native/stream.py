"""Linears of 1 to 16 tokens as a stream of weights, in CUDA C++: bulk copies into a ring that one warp keeps full.

Triton's kernel asks for weights after the launch before has ended, and waits between its loads; this one asks for a
ring of weights before that, and for more as soon as a stage was read.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

from ....call import Case, Kernel, KernelCall, Native, Operand, Suite
from .. import cases as linear_cases
from ..cases import LinearCase
from ..small import linear_small, linear_small_kernel
from ..tiles import NATIVE, Tile
from .fits import SM

KERNEL = Kernel("linear_stream", linear_small_kernel, SM, Native("linear/native/stream.cu"))
BATCH_1 = {
    "fp8": Tile(32, 1024, 1, 1, 8, 3, NATIVE),
    "dense": Tile(32, 512, 1, 1, 8, 3, NATIVE),
}
"""The tiles whose evidence is held: two blocks fill a multiprocessor's shared memory."""


def linear_stream(x: Operand, weights: tuple[Operand, ...], y: Operand, *, tile: Tile, **given: Any) -> KernelCall:
    """`linear_small` of a tile with the route "native"; a warp more than the tile has brings the weights."""
    return replace(linear_small(x, weights, y, tile=tile, **given), kernel=KERNEL, warps=tile.warps + 1)


_CASES = (
    LinearCase("fp8", 1, 70, 320, tile=Tile(32, 128, 1, 1, 4, 3, NATIVE), bias=True, residual=True),
    LinearCase("fp8", 3, 134, 192, activation="silu", bias=True, tile=Tile(32, 128, 4, 1, 8, 2, NATIVE)),
    LinearCase("fp8", 16, 40, 448, act="f16", y="f32", tile=Tile(32, 256, 16, 1, 8, 2, NATIVE)),
    LinearCase("dense", 7, 130, 352, tile=Tile(64, 128, 8, 1, 4, 2, NATIVE)),
    LinearCase("dense", 2, 70, 160, act="f16", weight="f16", residual=True, tile=Tile(32, 64, 2, 1, 4, 4, NATIVE)),
    LinearCase("dense", 1, 96, 256, activation="gelu_pytorch_tanh", tile=Tile(64, 64, 1, 1, 8, 3, NATIVE)),
)


def _cases() -> Iterator[Case]:
    for spec in _CASES:
        yield linear_cases.case(linear_stream, spec)


def _calls(sm: int) -> Iterator[KernelCall]:
    if sm != SM:
        return
    for format, tile in BATCH_1.items():
        for n, k in linear_cases.LLAMA_LAYERS:
            yield linear_cases.model_call(linear_stream, n, k, format, "bf16", 1, sm, tile=tile)
        yield linear_cases.model_call(
            linear_stream, 28672, 4096, format, "bf16", 8, sm, tile=replace(tile, block_m=8, block_k=tile.block_k // 2)
        )


SUITE = Suite((KERNEL,), _cases, _calls)
