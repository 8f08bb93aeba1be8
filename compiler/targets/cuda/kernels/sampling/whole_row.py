"""Thresholds and draws over all of a row of logits, by one program: for rows that no list of candidates serves.

The bits of a threshold are found from the highest down, four at a time: one pass over the row counts (top-k) or sums
(top-p) for sixteen candidates.
"""
# Triton's type stubs reject Python values as constants and its loops, and type reductions as if they might be tuples.
# pyright: reportOperatorIssue=false, reportArgumentType=false, reportAttributeAccessIssue=false
# pyright: reportGeneralTypeIssues=false

from __future__ import annotations

import triton
import triton.language as tl

from .candidates import first_above, ordered

STEP = 1024
"""Logits that a program reads at a time."""


@triton.jit
def threshold(row, maximum, sharpness, least, wanted, SUM: tl.constexpr, vocab, TILE: tl.constexpr):
    """The largest bits t (u32) for which the number of logits of at least t reaches `wanted`, or (SUM) the sum of the
    weights of at least t, over logits whose order is at least `least`."""
    candidate = tl.arange(0, 16)
    found = tl.full([], 0, tl.uint32)
    for step in range(8):
        levels = found | (candidate.to(tl.uint32) << (28 - 4 * step))
        reached = tl.zeros([16, TILE], tl.float32)
        for start in range(0, vocab, TILE):
            index = start + tl.arange(0, TILE)
            number = tl.load(row + index, index < vocab, float("-inf"))
            if SUM:
                weight = tl.exp((number - maximum) * sharpness)
                weight = tl.where(ordered(number) >= least, weight, 0.0)
                above = weight.to(tl.uint32, bitcast=True)[None, :] >= levels[:, None]
                reached += tl.where(above, weight[None, :], 0.0)
            else:
                above = (ordered(number)[None, :] >= levels[:, None]) & (index[None, :] < vocab)
                reached += above.to(tl.float32)
        enough = tl.sum(reached, axis=1) >= wanted
        level = tl.max(tl.where(enough, candidate, 0), axis=0)
        found = found | (level.to(tl.uint32) << (28 - 4 * step))
    return found


@triton.jit
def kept_weights(row, start, maximum, sharpness, least, cut, vocab, TILE: tl.constexpr):
    """exp((logit - maximum) * sharpness) of a tile; 0 below a threshold."""
    index = start + tl.arange(0, TILE)
    number = tl.load(row + index, index < vocab, float("-inf"))
    weight = tl.exp((number - maximum) * sharpness)
    return tl.where((ordered(number) >= least) & (weight >= cut) & (index < vocab), weight, 0.0)


@triton.jit
def draw_whole(row, maximum, sharpness, top_k, top_p, min_p, share, vocab, TILE: tl.constexpr):
    """The token at `share` (f64, 0 to 1) of the weights that top_k (0: all), top_p and min_p keep."""
    least = tl.full([], 0, tl.uint32)
    if top_k > 0:
        least = threshold(row, maximum, sharpness, least, top_k.to(tl.float32), False, vocab, TILE)
    cut = min_p
    if top_p < 1.0:
        sums = tl.zeros([TILE], tl.float32)
        for start in range(0, vocab, TILE):
            sums += kept_weights(row, start, maximum, sharpness, least, 0.0, vocab, TILE)
        mass = tl.maximum(top_p * tl.sum(sums, axis=0), 1e-30)  # top_p 0 keeps the best
        bits = threshold(row, maximum, sharpness, least, mass, True, vocab, TILE)
        cut = tl.maximum(cut, bits.to(tl.float32, bitcast=True))
    whole = tl.full([], 0.0, tl.float64)
    for start in range(0, vocab, TILE):
        whole += tl.sum(kept_weights(row, start, maximum, sharpness, least, cut, vocab, TILE), axis=0)
    target = share * whole
    before = tl.full([], 0.0, tl.float64)
    chosen = tl.full([], 0, tl.int32)
    rest = tl.full([], 0.0, tl.float64)
    done = tl.full([], 0, tl.int32)
    for start in range(0, vocab, TILE):
        part = tl.sum(kept_weights(row, start, maximum, sharpness, least, cut, vocab, TILE), axis=0)
        here = (done == 0) & (part > 0.0)
        chosen = tl.where(here, start, chosen)
        rest = tl.where(here, target - before, rest)
        before += part
        done = tl.where(before > target, 1, done)
    weight = kept_weights(row, chosen, maximum, sharpness, least, cut, vocab, TILE)
    return chosen + first_above(weight, rest, TILE)


@triton.jit
def best_whole(row, wanted, ids, values, vocab, TILE: tl.constexpr):
    """Store the `wanted` largest of a row of finite logits in ids and values: those above the least of them by id, then
    the least by id."""
    none = tl.full([], 0, tl.uint32)
    least = threshold(row, 0.0, 1.0, none, wanted.to(tl.float32), False, vocab, TILE)
    place = tl.full([], 0, tl.int32)
    for ties in tl.static_range(2):
        for start in range(0, vocab, TILE):
            index = start + tl.arange(0, TILE)
            number = tl.load(row + index, index < vocab, float("-inf"))
            hit = (ordered(number) == least) if ties else (ordered(number) > least)
            hit = (hit & (index < vocab)).to(tl.int32)
            slot = place + tl.cumsum(hit, axis=0) - 1
            stored = (hit > 0) & (slot < wanted)
            tl.store(ids + slot, index, stored)
            tl.store(values + slot, number, stored)
            place += tl.sum(hit, axis=0)
