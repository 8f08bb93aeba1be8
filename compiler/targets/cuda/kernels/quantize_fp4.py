"""Quantizes activations to E2M1 in groups, where no kernel that computes them can: a launch of its own."""

from __future__ import annotations

from collections.abc import Iterator

import torch
import triton
import triton.language as tl

from .....quantize.activations import GROUP, quantize_activations
from ..call import Case, Kernel, KernelCall, Operand, Suite, product, total
from .fp4 import MINIMUM_SM, group_of, store_groups

_COLUMNS = 2048


@triton.jit
def quantize_fp4_kernel(x, codes, scales, K: tl.constexpr, GROUP: tl.constexpr, COLUMNS: tl.constexpr):
    """x [tokens, K] -> codes u8 [tokens, K / 2] and scales u8 [tokens, K / GROUP]. Grid: tokens, blocks of COLUMNS."""
    token = tl.program_id(0).to(tl.int64) + tl.arange(0, 1)
    first = tl.program_id(1) * COLUMNS
    column = first + tl.arange(0, COLUMNS)
    values = tl.load(x + token[:, None] * K + column[None, :], column[None, :] < K, 0.0).to(tl.float32)
    store_groups(values, codes, scales, token, token >= 0, first, K, GROUP)


KERNEL = Kernel("quantize_fp4", quantize_fp4_kernel, MINIMUM_SM)


def quantize_fp4(x: Operand, codes: Operand, scales: Operand) -> KernelCall:
    """x [tokens, K] -> codes u8 [tokens, K / 2] and scales u8 [tokens, K / 16] (nvfp4) or [tokens, K / 32] (mxfp4)."""
    tokens, k = x.shape
    assert isinstance(k, int)
    return KernelCall(
        KERNEL,
        {"x": x, "codes": codes, "scales": scales},
        {"K": k, "GROUP": group_of(scales, k), "COLUMNS": _COLUMNS},
        (tokens, -(-k // _COLUMNS)),
        writes=("codes", "scales"),
        bytes=total(x.bytes, codes.bytes, scales.bytes),
        operations=product(tokens, 20 * k),
    )


def narrow(k: int, format: str, rows: int | str = "tokens") -> tuple[Operand, Operand]:
    """Operands "codes" and "scales" of activations [rows, K] in a format."""
    return Operand("codes", "u8", (rows, k // 2)), Operand("scales", "u8", (rows, k // GROUP[format]))


def hard(tokens: int, k: int, source: torch.Generator) -> torch.Tensor:
    """Activations f32 [tokens, K] with what is hard to round: ties, zeros, tiny and huge groups, NaN and infinity."""
    x = torch.randn(tokens, k, generator=source) * 4
    x[0, :32] = torch.tensor([0.25, 0.75, 1.25, 1.75, 2.5, 3.5, 5.0, 6.0, *([-0.25, -1.25, -2.5, -5.0] * 6)])
    x[0, 32:64] = 0.0
    x[-1, :32] *= 2.0**-14
    x[-1, 32:64] *= 2.0**10
    x[-1, -1] = float("nan")
    x[-1, -40] = -float("inf")
    return x


def _cases() -> Iterator[Case]:
    source = torch.Generator().manual_seed(7)
    for format in GROUP:
        for tokens, k, dtype, kind in ((3, 2144, "bf16", torch.bfloat16), (2, 160, "f16", torch.float16)):
            x = hard(tokens, k, source).to(kind)
            codes, scales = quantize_activations(x, format)
            call = quantize_fp4(Operand("x", dtype, ("tokens", k)), *narrow(k, format))
            expected = {"codes": codes, "scales": scales}
            yield Case(f"{format}-{dtype}-{tokens}x{k}", call, {"x": x}, {"tokens": tokens}, expected, 0.0)


def _calls(sm: int) -> Iterator[KernelCall]:
    if sm >= MINIMUM_SM:
        for format in GROUP:
            yield quantize_fp4(Operand("x", "bf16", ("tokens", 4096)), *narrow(4096, format))


SUITE = Suite((KERNEL,), _cases, _calls)
