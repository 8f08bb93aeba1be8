"""Splits of a sequence that is decoded: how many, where they leave their results, and how those become one."""
# Triton's type stubs type reductions as if they might be tuples.
# pyright: reportOperatorIssue=false

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import triton
import triton.language as tl

from ......runtime.chips import chip
from ...call import Operand
from ..linear.dequantize import stored_column

MOST_SPLITS = 32
LEAST_PAGES = 2
"""Fewest pages of a split: below it, the start and end of a program cost more than the split saves."""


@triton.jit
def weigh_parts(
    partial,
    lse,
    sinks,
    out,
    sequence,
    head,
    HEADS: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    SPLITS: tl.constexpr,
    COUNT: tl.constexpr,
    DIM: tl.constexpr,
    ORDER: tl.constexpr,
):
    """Combine a head's splits, weighted by their sums, in a fixed order; a sequence without positions gives zeros."""
    row = (sequence * HEADS + head).to(tl.int64)
    split = tl.arange(0, COUNT)
    sums = tl.load(lse + row * SPLITS + split, split < SPLITS, -1e30, cache_modifier=".cg")
    sink = -1e30
    if sinks is not None:
        sink = tl.load(sinks + head).to(tl.float32) * 1.4426950408889634
    highest = tl.maximum(tl.max(sums, axis=0), sink)
    weights = tl.where(sums > -1e29, tl.exp2(sums - highest), 0.0)
    norm = tl.sum(weights, axis=0)
    if sinks is not None:
        norm += tl.exp2(sink - highest)
    dim = tl.arange(0, DIM)
    inside = (split[:, None] < SPLITS) & (dim[None, :] < HEAD_DIM)
    at = (row * SPLITS + split[:, None]) * HEAD_DIM + dim[None, :]
    parts = tl.load(partial + at, inside, 0.0, cache_modifier=".cg")
    mean = tl.sum(parts * weights[:, None], axis=0) / tl.where(norm > 0.0, norm, 1.0)
    target = out + sequence.to(tl.int64) * (HEADS * HEAD_DIM) + stored_column(head * HEAD_DIM + dim, ORDER)
    tl.store(target, mean.to(out.dtype.element_ty), dim < HEAD_DIM)


@dataclass(frozen=True)
class Parts:
    """The workspace of `attention_decode` for more than one split."""

    partial: Operand
    """f32 [sequences, heads, splits, head_dim]."""
    lse: Operand
    """f32 [sequences, heads, splits]."""
    counters: Operand
    """i32, zeros, at least sequences * kv_heads: fewer than a chip's processors, otherwise nothing is split."""


def splits_for(sequences: int, kv_heads: int, max_blocks: int, sm: int) -> int:
    """Splits of a sequence: a power of two that gives every processor a program, if there are enough pages."""
    wanted = chip(sm).processors // (sequences * kv_heads)
    most = min(MOST_SPLITS, max(max_blocks // LEAST_PAGES, 1))
    return max(min(1 << max(wanted, 1).bit_length() - 1, 1 << most.bit_length() - 1), 1)


def parts_of(make: Callable[..., Operand], counters: Operand, heads: int, head_dim: int, splits: int) -> Parts | None:
    """The workspace for `splits`, None for one split; `make` makes an operand of a name, dtype and shape."""
    if splits == 1:
        return None
    shape = ("sequences", heads, splits)
    return Parts(make("partial", "f32", *shape, head_dim), make("lse", "f32", *shape), counters)
