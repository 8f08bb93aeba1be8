"""Linears of many tokens with FP8 weights and activations, in CUDA C++: tensor maps, a producer, two warpgroups.

Sums stay in the tensor cores' accumulators (no PROMOTE): what that costs in exactness is what `linear_fp8` costs
without it.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

from ....call import Case, Kernel, KernelCall, Native, Operand, Suite
from .. import fp8
from ..cases import LLAMA_LAYERS
from ..tiles import NATIVE, Tile, default_tile
from .fits import SM

KERNEL = Kernel(
    "linear_gemm",
    fp8.linear_fp8_kernel,
    SM,
    Native("linear/native/gemm.cu", (("x", "BLOCK_M"), ("w", "BLOCK_N"))),
)
PROMPTS = Tile(256, 128, 128, 1, 8, 4, NATIVE)
"""The tile whose evidence is held."""
_PRODUCERS = 4
"""Warps: a warpgroup, because a warpgroup gives registers away as a whole."""


def linear_gemm(
    x_codes: Operand, x_scales: Operand, weights: tuple[Operand, ...], y: Operand, *, tile: Tile, **given: Any
) -> KernelCall:
    """`linear_fp8` of a tile with the route "native" and scales of rows; sums are not promoted."""
    given["promote"] = False
    call = fp8.linear_fp8(x_codes, x_scales, weights, y, tile=tile, **given)
    return replace(call, kernel=KERNEL, warps=tile.warps + _PRODUCERS)


_CASES = (
    (70, 136, 528, "rows", "bf16", "bias", Tile(128, 128, 64, 1, 4, 2, NATIVE)),
    (130, 261, 384, "rows", "f16", "residual", Tile(256, 128, 128, 1, 8, 4, NATIVE)),
    (65, 128, 640, "static", "bf16", "", Tile(128, 128, 128, 1, 8, 3, NATIVE)),
)


def _cases() -> Iterator[Case]:
    yield from fp8.cases(_CASES, linear_gemm)


def _calls(sm: int) -> Iterator[KernelCall]:
    if sm == SM:
        yield from (own for _, _, _, own, _ in pairs(sm))
        yield fp8.model_call(linear_gemm, 4096, 4096, "rows", 128, sm, Tile(128, 128, 64, 1, 4, 6, NATIVE))


def pairs(sm: int) -> Iterator[tuple[str, str, int, KernelCall, KernelCall]]:
    """(name, unit of work, tokens, call, Triton's call) of the linears of a prompt of 2,048 tokens."""
    for n, k in LLAMA_LAYERS:
        other = fp8.model_call(fp8.linear_fp8, n, k, "rows", 2048, sm, default_tile("fp8", n, k, "fp8", 2048, sm))
        own = fp8.model_call(linear_gemm, n, k, "rows", 2048, sm, PROMPTS)
        yield f"fp8 x fp8 {n} x {k}, 2048 tokens", "product", 2048, own, other


SUITE = Suite((KERNEL,), _cases, _calls)
