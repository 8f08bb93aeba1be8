"""What attention of one token and of many share: queries of some heads over rows of one sequence, read once for all."""
# Triton's type stubs type reductions as if they might be tuples, and reject its loops.
# pyright: reportOperatorIssue=false, reportGeneralTypeIssues=false

from __future__ import annotations

import triton
import triton.language as tl

from ..attention.flash_prefill import load_cached
from ..linear.parts.common import dot


@triton.jit
def load_queries(query, at, wanted, RANK: tl.constexpr, ROPE: tl.constexpr, DIM: tl.constexpr, TURN: tl.constexpr):
    """Heads `at` of query [heads, RANK + ROPE] as two blocks, [M, DIM] and [M, TURN]; 0 where not wanted."""
    dim = tl.arange(0, DIM)[None, :]
    turn = tl.arange(0, TURN)[None, :]
    source = query + at[:, None] * (RANK + ROPE)
    latent = tl.load(source + dim, wanted[:, None] & (dim < RANK), 0.0)
    turned = tl.load(source + RANK + turn, wanted[:, None] & (turn < ROPE), 0.0)
    return latent, turned


@triton.jit
def mix_rows(
    latent,
    turned,
    rows,
    table,
    position,
    first,
    stop,
    SCALE: tl.constexpr,
    RANK: tl.constexpr,
    ROPE: tl.constexpr,
    M: tl.constexpr,
    DIM: tl.constexpr,
    TURN: tl.constexpr,
    TILE: tl.constexpr,
    PAGE: tl.constexpr,
    CAUSAL: tl.constexpr,
    EMULATE: tl.constexpr,
):
    """Queries latent [M, DIM] and turned [M, TURN] attend to positions first .. stop of rows [blocks, PAGE, RANK +
    ROPE] -> (mixed latents f32 [M, DIM], which their norm f32 [M] has yet to divide, the norm, the highest score f32
    [M] in base 2). With CAUSAL each goes up to its own position i32 [M]; else none is before `stop`.

    `table` points to the sequence's block ids, and TILE divides PAGE and first.
    """
    acc = tl.zeros([M, DIM], tl.float32)
    norm = tl.zeros([M], tl.float32)
    highest = tl.full([M], -1e30, tl.float32)
    dim = tl.arange(0, DIM)[None, :]
    turn = tl.arange(0, TURN)[None, :]
    for start in range(first, stop, TILE):
        other = start + tl.arange(0, TILE)
        stored = other < stop
        here = rows + (tl.load(table + start // PAGE).to(tl.int64) * PAGE + start % PAGE) * (RANK + ROPE)
        offset = tl.arange(0, TILE)[:, None] * (RANK + ROPE)
        whole = stored[:, None] if RANK == DIM else stored[:, None] & (dim < RANK)
        cached = load_cached(here, offset + dim, whole, latent.dtype)
        keys = load_cached(here, offset + RANK + turn, stored[:, None] & (turn < ROPE), latent.dtype)
        scores = dot(turned, tl.trans(keys), tl.zeros([M, TILE], tl.float32), EMULATE)
        scores = dot(latent, tl.trans(cached), scores, EMULATE) * (SCALE * 1.4426950408889634)
        seen = stored[None, :]
        if CAUSAL:
            seen = seen & (other[None, :] <= position[:, None])
        scores = tl.where(seen, scores, -1e30)
        above = tl.maximum(highest, tl.max(scores, axis=1))
        weights = tl.where(seen, tl.exp2(scores - above[:, None]), 0.0)
        fade = tl.exp2(highest - above)
        norm = norm * fade + tl.sum(weights, axis=1)
        acc = dot(weights.to(cached.dtype), cached, acc * fade[:, None], EMULATE)
        highest = above
    return acc, norm, highest
