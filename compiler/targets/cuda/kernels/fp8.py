"""Conversions to and from E4M3, shared by all kernels that quantize activations, weights or the cache.

A number that is not finite becomes NaN and stays NaN. If it became 448, sums with it would look right and the check of
the logits would not find the fault. E4M3 has no infinity.
"""

from __future__ import annotations

import triton
import triton.language as tl

LARGEST = 448.0
"""The largest E4M3 number (Micikevicius et al., "FP8 formats for deep learning", 2022)."""
LEAST = 2.0**-100
"""The least maximum of a row: a row of zeros then has a finite scale above 0."""
BLOCK = 128
"""Columns of activations, and rows and columns of weights, that share a scale of blocks."""
MINIMUM_SM = 89
"""The first capability with instructions for E4M3."""


@triton.jit
def scale_of(largest):
    """The scale of numbers whose largest magnitude is `largest`; the code of the largest is 448.

    A maximum ignores NaN, so the scale is that of the other numbers, and the code of a NaN is NaN. An infinity makes
    the scale infinite: its code is NaN, and the codes of the finite numbers are 0.
    """
    return tl.div_rn(tl.maximum(largest, 2.0**-100), 448.0)


@triton.jit
def to_e4m3(values, scale):
    """E4M3 bits (u8) of values / scale; see `saturated`."""
    return saturated(tl.div_rn(values, tl.broadcast_to(scale, values.shape)))


@triton.jit
def saturated(numbers):
    """E4M3 bits (u8) of f32: nearest, ties to even, saturated at 448; NaN and infinity become 0x7F or 0xFF (NaN)."""
    # numbers * 0 is NaN for NaN and infinity, and 0 for all others: one instruction.
    bounded = tl.minimum(tl.maximum(numbers, -448.0), 448.0) + numbers * 0.0
    return bounded.to(tl.float8e4nv).to(tl.uint8, bitcast=True)


@triton.jit
def from_e4m3(bits, ACT: tl.constexpr):
    """Exact numbers of E4M3 bits (u8) in ACT; 0x7F and 0xFF are NaN."""
    # By way of float32: chips convert float16 to bfloat16 directly at a quarter of the rate or less.
    return bits.to(tl.float8e4nv, bitcast=True).to(tl.float32).to(ACT)


@triton.jit
def e4m3_pairs(pairs, EMULATE: tl.constexpr):
    """The low and the high E4M3 code of each i16 as f16, exactly; 0x7F and 0xFF are NaN."""
    if EMULATE:
        low = (pairs & 0xFF).to(tl.uint8).to(tl.float8e4nv, bitcast=True).to(tl.float16)
        high = ((pairs >> 8) & 0xFF).to(tl.uint8).to(tl.float8e4nv, bitcast=True).to(tl.float16)
    else:
        low, high = tl.inline_asm_elementwise(
            "{ .reg .b32 w; .reg .b16 a, b; prmt.b32 w, $2, 0, 0x3120; mov.b32 {a, b}, w; "
            "cvt.rn.f16x2.e4m3x2 $0, a; cvt.rn.f16x2.e4m3x2 $1, b; }",
            "=r,=r,r",
            [pairs],
            (tl.float16, tl.float16),
            True,
            2,
        )
    return low, high
