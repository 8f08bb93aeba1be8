"""E4M3 and back, shared by all kernels that quantize activations, weights or the cache.

A number that is not finite becomes NaN and stays NaN: were it 448, a sum with it would look right, and no check of the
logits would find what went wrong. E4M3 has no infinity.
"""

from __future__ import annotations

import triton
import triton.language as tl

LARGEST = 448.0
"""Of E4M3 (Micikevicius et al., "FP8 formats for deep learning", 2022)."""
LEAST = 2.0**-100
"""What a row of zeros counts as, so that its scale is a number."""
BLOCK = 128
"""Columns, and rows of weights, that share a scale where tokens and rows have more than one."""
MINIMUM_SM = 89
"""Older chips have no instruction for it."""


@triton.jit
def scale_of(largest):
    """The scale of numbers whose largest magnitude is `largest`: it becomes 448.

    Maxima pass over NaN, so the scale is that of the other numbers, and the NaN is seen in its code. An infinity makes
    the scale infinite: it is NaN as a code, and the finite numbers beside it are 0.
    """
    return tl.div_rn(tl.maximum(largest, 2.0**-100), 448.0)


@triton.jit
def to_e4m3(values, scale):
    """E4M3 bits of values / scale, as `saturated` gives them."""
    return saturated(tl.div_rn(values, tl.broadcast_to(scale, values.shape)))


@triton.jit
def saturated(numbers):
    """E4M3 bits (u8) of float32 numbers: nearest, ties to even, at most 448 in magnitude; not finite: 0x7F or 0xFF."""
    # A product with 0 is NaN for NaN and for infinity, and changes nothing else: one instruction.
    bounded = tl.minimum(tl.maximum(numbers, -448.0), 448.0) + numbers * 0.0
    return bounded.to(tl.float8e4nv).to(tl.uint8, bitcast=True)


@triton.jit
def from_e4m3(bits, ACT: tl.constexpr):
    """Numbers of E4M3 bits (u8) in ACT, exactly; 0x7F and 0xFF are NaN."""
    # Through float32, since chips convert float16 to bfloat16 itself at a quarter of the rate or less.
    return bits.to(tl.float8e4nv, bitcast=True).to(tl.float32).to(ACT)
