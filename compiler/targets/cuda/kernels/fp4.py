"""Conversion of activations to E2M1 in groups along K, for kernels that hold whole groups: 16 (nvfp4) or 32 (mxfp4).

A group's scale depends on the group alone (`quantize/activations.py`), so norms, attention and linears write codes
in their epilogue. E2M1 has no NaN: a group with a number that is not finite gets the scale NaN, so that products are.
"""

# Triton's type stubs reject plain numbers as constexprs, and take a maximum for a tuple.
# pyright: reportArgumentType=false, reportAttributeAccessIssue=false, reportOperatorIssue=false

from __future__ import annotations

import triton
import triton.language as tl

from .....quantize.activations import GROUP, NVFP4_UNIT
from .....quantize.formats.mxfp4 import ROUND_UP_FROM
from ..call import Operand
from .fp8 import from_e4m3, saturated

MINIMUM_SM = 100
"""The first capability with FP4 tensor cores."""


@triton.constexpr_function
def is_nvfp4(group):
    return group == GROUP["nvfp4"]


@triton.constexpr_function
def unit_of(group):
    """What a scale of 1 stands for."""
    return NVFP4_UNIT if group == GROUP["nvfp4"] else 1.0


@triton.constexpr_function
def _carry():
    """Added to the bits of a float32, carries into the exponent where a group's scale is the next power of two."""
    return int((2 - ROUND_UP_FROM) * 2**23)


@triton.jit
def scale_number(bits, GROUP: tl.constexpr):
    """The f32 that scale bits (u8) of groups of this size stand for, without the unit of nvfp4; NaN for NaN."""
    if is_nvfp4(GROUP):
        number = from_e4m3(bits, tl.float32)
    else:
        wide = bits.to(tl.int32)
        number = tl.where(wide == 255, 0x7FC00000, tl.maximum(wide << 23, 0x00400000)).to(tl.float32, bitcast=True)
    return number


@triton.jit
def quantize_groups(values, GROUP: tl.constexpr):
    """f32 [ROWS, GROUPS, GROUP] -> codes u8 [ROWS, GROUPS, GROUP / 2], the even one in the low nibble, and scales u8
    [ROWS, GROUPS]: E4M3 or E8M0 bits.

    A code is compared with the midpoints between E2M1 numbers times the scale, which f32 represents: so it is the
    nearest of the exact quotient, ties to even, saturated at 6, with no division for each number.
    """
    bits = values.to(tl.int32, bitcast=True)
    # As integers magnitudes have the same order, with infinity and NaN on top: a maximum of numbers would ignore NaN.
    largest = tl.max(bits & 0x7FFFFFFF, 2)
    if is_nvfp4(GROUP):
        ratio = tl.div_rn(
            largest.to(tl.float32, bitcast=True), tl.full(largest.shape, 6.0 * unit_of(GROUP), tl.float32)
        )
        # A NaN may have a sign, which tensor cores do not expect. 1 is 2^-9, so that no scale is zero.
        stored = tl.maximum(saturated(ratio) & 0x7F, 1)
        scale = from_e4m3(stored, tl.float32) * unit_of(GROUP)
    else:
        exponent = tl.minimum(tl.maximum(((largest + _carry()) >> 23) - 2, 27), 253)
        exponent = tl.where(largest >= 0x7F800000, 255, exponent)
        stored = exponent.to(tl.uint8)
        scale = scale_number(stored, GROUP)
    step = scale[:, :, None]
    size = tl.abs(values)
    code = (size > 0.25 * step).to(tl.int32) + (size >= 0.75 * step).to(tl.int32) + (size > 1.25 * step).to(tl.int32)
    code += (size >= 1.75 * step).to(tl.int32) + (size > 2.5 * step).to(tl.int32)
    code += (size >= 3.5 * step).to(tl.int32) + (size > 5.0 * step).to(tl.int32)
    code |= (bits >> 28) & 8
    pairs = tl.reshape(code, [values.shape[0], values.shape[1], GROUP // 2, 2])
    low, high = tl.split(pairs)
    return (low | (high << 4)).to(tl.uint8), stored


@triton.jit
def store_groups(values, codes, scales, row, inside, first, K: tl.constexpr, GROUP: tl.constexpr):
    """Quantize f32 [ROWS, COLUMNS], the columns from `first` on of rows `row` i64 where `inside`, and store them.

    codes u8 [rows, K / 2], scales u8 [rows, K / GROUP]; nothing is stored past a row's end. Columns outside are 0.
    """
    ROWS: tl.constexpr = values.shape[0]
    COLUMNS: tl.constexpr = values.shape[1]
    made, stored = quantize_groups(tl.reshape(values, [ROWS, COLUMNS // GROUP, GROUP]), GROUP)
    group = first // GROUP + tl.arange(0, COLUMNS // GROUP)
    byte = first // 2 + tl.arange(0, COLUMNS // 2)
    within = inside[:, None] & (group[None, :] < K // GROUP)
    tl.store(scales + row[:, None] * (K // GROUP) + group[None, :], stored, within)
    within = inside[:, None] & (byte[None, :] < K // 2)
    tl.store(codes + row[:, None] * (K // 2) + byte[None, :], tl.reshape(made, [ROWS, COLUMNS // 2]), within)


def group_of(scales: Operand | None, k: int) -> int | None:
    """The group of scales u8 [rows, K / group]; None for other scales, and for none."""
    if scales is None or scales.dtype != "u8":
        return None
    groups = scales.shape[-1]
    assert isinstance(groups, int) and k % groups == 0
    return k // groups
