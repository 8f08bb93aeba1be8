"""Rounding to E4M3 with a scale of one's own, shared by all kernels that quantize activations or weights."""

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
    """The scale of numbers whose largest magnitude is `largest`: it becomes 448."""
    return tl.div_rn(tl.maximum(largest, 2.0**-100), 448.0)


@triton.jit
def to_e4m3(values, scale):
    """E4M3 bits of values / scale, rounded to nearest, ties to even."""
    scale = tl.broadcast_to(scale, values.shape)
    ratio = tl.minimum(tl.maximum(tl.div_rn(values, scale), -448.0), 448.0)
    return ratio.to(tl.float8e4nv).to(tl.uint8, bitcast=True)
