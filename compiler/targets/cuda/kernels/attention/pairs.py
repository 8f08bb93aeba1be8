"""Queries, keys and values of a cache of E4M3 codes as f16, even and odd columns apart.

A 16-bit word of the cache is an even and an odd column. Fragments of 16-bit words come from shared memory in whole
registers, transposed ones too, which bytes do not; decoded there, each gives a fragment of even and one of odd columns
(`../fp8.py`). A product over columns is the sum of both, and one over positions has both beside each other.
"""
# Triton's type stubs type reductions as if they might be tuples.
# pyright: reportAttributeAccessIssue=false

from __future__ import annotations

import triton
import triton.language as tl

from ..fp8 import e4m3_pairs


@triton.jit
def cached_pairs(
    cache, slab, seen, HEAD_DIM: tl.constexpr, DIM: tl.constexpr, PAGE: tl.constexpr, EMULATE: tl.constexpr
):
    """Even and odd columns of page `slab` of cache u8 [slabs, PAGE, HEAD_DIM], f16 [PAGE, DIM / 2] each; 0 outside."""
    pair = tl.arange(0, DIM // 2)
    offset = slab * (PAGE * HEAD_DIM // 2) + tl.arange(0, PAGE)[:, None] * (HEAD_DIM // 2) + pair[None, :]
    inside = seen[:, None] & (pair[None, :] < HEAD_DIM // 2)
    return e4m3_pairs(tl.load(cache.to(tl.pointer_type(tl.int16)) + offset, inside, 0), EMULATE)


@triton.jit
def query_pairs(queries, inside, HEAD_DIM: tl.constexpr, DIM: tl.constexpr):
    """Even and odd columns f16 [rows, DIM / 2] of rows at pointers `queries` [rows, 1], and f32 [rows, 1] that both
    must still be multiplied by.

    It is the power of two that brings a row's largest number to [2^14, 2^15): none is too large for f16, and what f16
    rounds or loses is below 2^-28 of the largest. NaN and infinity stay.
    """
    pair = tl.arange(0, DIM // 2)[None, :]
    within = inside & (pair < HEAD_DIM // 2)
    even = tl.load(queries + 2 * pair, within, 0.0).to(tl.float32)
    odd = tl.load(queries + 2 * pair + 1, within, 0.0).to(tl.float32)
    largest = tl.max(tl.maximum(tl.abs(even), tl.abs(odd)), axis=1, keep_dims=True)
    exponent = tl.minimum(tl.maximum(largest.to(tl.int32, bitcast=True) >> 23, 15), 254)
    raised = ((268 - exponent) << 23).to(tl.float32, bitcast=True)
    lowered = ((exponent - 14) << 23).to(tl.float32, bitcast=True)
    return (even * raised).to(tl.float16), (odd * raised).to(tl.float16), lowered
