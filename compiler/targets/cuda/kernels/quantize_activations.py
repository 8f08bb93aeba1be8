"""Quantizes activations to E4M3 for `linear_fp8`: a scale per token, per block of 128 columns, or one calibrated."""

from __future__ import annotations

from collections.abc import Iterator

import torch
import triton
import triton.language as tl

from ..call import Argument, Case, Kernel, KernelCall, Operand, Suite, next_power, product, total
from .fp8 import BLOCK, LARGEST, LEAST, MINIMUM_SM, scale_of, to_e4m3


@triton.jit
def quantize_rows_kernel(x, codes, scales, K: tl.constexpr, COLUMNS: tl.constexpr):
    """x [tokens, K] -> codes u8 [tokens, K] (E4M3 bits) and scales f32 [tokens]. Grid: tokens."""
    token = tl.program_id(0).to(tl.int64)
    largest = tl.zeros([COLUMNS], tl.float32)
    for k in range(0, K, COLUMNS):
        column = k + tl.arange(0, COLUMNS)
        largest = tl.maximum(largest, tl.abs(tl.load(x + token * K + column, column < K, 0.0).to(tl.float32)))
    scale = scale_of(tl.max(largest, 0))
    tl.store(scales + token, scale)
    for k in range(0, K, COLUMNS):
        column = k + tl.arange(0, COLUMNS)
        values = tl.load(x + token * K + column, column < K, 0.0).to(tl.float32)
        tl.store(codes + token * K + column, to_e4m3(values, scale), column < K)


@triton.jit
def quantize_blocks_kernel(x, codes, scales, K: tl.constexpr, BLOCK: tl.constexpr, COUNT: tl.constexpr):
    """x [tokens, K] -> codes u8 [tokens, K] and scales f32 [tokens, cdiv(K, BLOCK)]. Grid: tokens, COUNT blocks."""
    token = tl.program_id(0).to(tl.int64)
    block = tl.program_id(1) * COUNT + tl.arange(0, COUNT)
    column = block[:, None] * BLOCK + tl.arange(0, BLOCK)[None, :]
    values = tl.load(x + token * K + column, column < K, 0.0).to(tl.float32)
    scale = scale_of(tl.max(tl.abs(values), 1))
    BLOCKS: tl.constexpr = (K + BLOCK - 1) // BLOCK
    tl.store(scales + token * BLOCKS + block, scale, block < BLOCKS)
    tl.store(codes + token * K + column, to_e4m3(values, scale[:, None]), column < K)


@triton.jit
def quantize_static_kernel(x, codes, scales, tokens, K: tl.constexpr, COUNT: tl.constexpr):
    """x [tokens, K] / scales f32 [1], saturated at 448 -> codes u8 [tokens, K]. Grid: blocks of COUNT numbers."""
    place = tl.program_id(0).to(tl.int64) * COUNT + tl.arange(0, COUNT)
    inside = place < tokens.to(tl.int64) * K
    tl.store(codes + place, to_e4m3(tl.load(x + place, inside, 0.0).to(tl.float32), tl.load(scales)), inside)


ROWS = Kernel("quantize_rows", quantize_rows_kernel, MINIMUM_SM)
BLOCKWISE = Kernel("quantize_blocks", quantize_blocks_kernel, MINIMUM_SM)
STATIC = Kernel("quantize_static", quantize_static_kernel, MINIMUM_SM)


def quantize_activations(x: Operand, codes: Operand, scales: Operand) -> KernelCall:
    """x [tokens, K] -> codes u8 [tokens, K] and scales f32 [tokens], or f32 [tokens, cdiv(K, 128)] of blocks.

    Scales f32 [1] are read and not written: one number for the whole tensor, a weight of the engine. Calibration sets
    it to the largest magnitude of its samples / 448; larger numbers are saturated. NaN and infinity have the code NaN.
    """
    tokens, k = x.shape
    static = scales.shape == (1,)
    assert isinstance(k, int)
    arguments: dict[str, Argument] = {"x": x, "codes": codes, "scales": scales}
    grid: tuple[int | str, ...] = (tokens,)
    kernel, constants, warps = ROWS, {"K": k, "COLUMNS": min(next_power(k), 4096)}, 8
    if static:
        count = 2048
        grid = (f"cdiv({product(tokens, k)}, {count})",)
        kernel, constants, warps = STATIC, {"K": k, "COUNT": count}, 4
        arguments["tokens"] = str(tokens)
    elif len(scales.shape) == 2:
        count = min(8, next_power(-(-k // BLOCK)))
        grid = (tokens, -(-k // (BLOCK * count)))
        kernel, constants, warps = BLOCKWISE, {"K": k, "BLOCK": BLOCK, "COUNT": count}, 4
    return KernelCall(
        kernel,
        arguments,
        constants,
        grid,
        writes=("codes",) if static else ("codes", "scales"),
        bytes=total(x.bytes, codes.bytes, scales.bytes),
        operations=product(tokens, 4 * k),
        warps=warps,
    )


def scale_shape(form: str, tokens: int | str, k: int) -> tuple[int | str, ...]:
    """The shape of the scales of activations [tokens, K]; form is "rows", "blocks" or "static"."""
    return {"rows": (tokens,), "blocks": (tokens, -(-k // BLOCK)), "static": (1,)}[form]


def quantized(x: torch.Tensor, form: str) -> tuple[torch.Tensor, torch.Tensor]:
    """The reference: codes u8 and scales of x [tokens, K], per "rows", per "blocks", or "static" (saturates a few).

    Numbers that are not finite have the code NaN; maxima ignore NaN, as in `scale_of`.
    """
    tokens, k = x.shape
    width = BLOCK if form == "blocks" else k
    padded = torch.nn.functional.pad(x.float(), (0, -k % width)).view(tokens, -1, width)
    scales = padded.abs().nan_to_num(nan=0.0, posinf=float("inf")).amax(2).clamp(min=LEAST) / LARGEST
    if form == "static":
        scales = (scales.amax() / 2).repeat(tokens, 1)
    ratio = padded / scales[:, :, None]
    bounded = ratio.clamp(-LARGEST, LARGEST).where(ratio.isfinite(), torch.nan)
    codes = bounded.to(torch.float8_e4m3fn).view(torch.uint8).view(tokens, -1)[:, :k].contiguous()
    return codes, {"rows": scales[:, 0], "blocks": scales, "static": scales[0]}[form]


def _cases() -> Iterator[Case]:
    source = torch.Generator().manual_seed(7)
    for tokens, k, form, dtype, kind in (
        (3, 300, "rows", "bf16", torch.bfloat16),
        (2, 4200, "rows", "f16", torch.float16),
        (3, 1300, "blocks", "bf16", torch.bfloat16),
        (1, 128, "blocks", "f16", torch.float16),
        (3, 1367, "static", "bf16", torch.bfloat16),
        (1, 67, "static", "f16", torch.float16),
    ):
        x = (torch.randn(tokens, k, generator=source) * 5).to(kind)
        x[0, :128] = 0
        codes, scales = quantized(x, form)
        call = quantize_activations(
            Operand("x", dtype, ("tokens", k)),
            Operand("codes", "u8", ("tokens", k)),
            Operand("scales", "f32", scale_shape(form, "tokens", k)),
        )
        inputs = {"x": x, "scales": scales} if form == "static" else {"x": x}
        expected = {"codes": codes, "scales": scales}
        yield Case(f"{form}-{dtype}-{tokens}x{k}", call, inputs, {"tokens": tokens}, expected, 1e-6)


def _calls(sm: int) -> Iterator[KernelCall]:
    codes, x = Operand("codes", "u8", ("tokens", 4096)), Operand("x", "bf16", ("tokens", 4096))
    yield quantize_activations(x, codes, Operand("scales", "f32", ("tokens",)))
    yield quantize_activations(x, codes, Operand("scales", "f32", ("tokens", 32)))
    yield quantize_activations(x, codes, Operand("scales", "f32", (1,)))


SUITE = Suite((ROWS, BLOCKWISE, STATIC), _cases, _calls)
