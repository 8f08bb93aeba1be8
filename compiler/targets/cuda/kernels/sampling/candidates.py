"""The largest logits of a row, found by the peaks of its groups, and thresholds among them.

Every logit that reaches a bound is in a group whose peak reaches it. The bound is chosen such that few groups do; their
logits are a list that one program holds in registers. If what is to be kept reaches below the bound, the list does not
serve (`whole_row.py` does then).
"""
# Triton's type stubs reject Python values as constants, and type reductions as if they might be tuples.
# pyright: reportOperatorIssue=false, reportArgumentType=false, reportAttributeAccessIssue=false

from __future__ import annotations

import triton
import triton.language as tl

GROUP = 16
"""Logits of a group."""
MOST_GROUPS, MOST_GROUPS_UNALIGNED = 1024, 512
"""Groups whose logits are listed for a draw: what a program holds in registers, in vectors of four logits or alone."""
FEW_GROUPS = 64
"""Groups whose logits are listed for log-probabilities: each has one that reaches the bound, and 20 are wanted."""
BISECTIONS = 32
"""The most steps of a search over 32 bits."""


@triton.constexpr_function
def lowest():
    """The peak of a group without logits: the lowest f32."""
    return -3.4028234663852886e38


@triton.constexpr_function
def one():
    """The bits of 1.0: the largest weight."""
    return 0x3F800000


@triton.jit
def ordered(number):
    """f32 as u32 of the same order; -0 equals 0."""
    bits = (number + 0.0).to(tl.int32, bitcast=True)
    return (bits ^ ((bits >> 31) & 0x7FFFFFFF)).to(tl.uint32, bitcast=True) ^ 0x80000000


@triton.jit
def restored(order):
    """The f32 of a u32 of `ordered`."""
    bits = (order ^ 0x80000000).to(tl.int32, bitcast=True)
    return (bits ^ ((bits >> 31) & 0x7FFFFFFF)).to(tl.float32, bitcast=True)


@triton.jit
def largest_reaching(orders, amounts, wanted, low, high):
    """The largest t in low..high (u32) for which the `amounts` of `orders` of at least t sum to `wanted`, else low."""
    while low < high:
        middle = high - (high - low) // 2
        enough = tl.sum(tl.ravel(tl.where(orders >= middle, amounts, 0)), axis=0) >= wanted
        low = tl.where(enough, middle, low)
        high = tl.where(enough, high, middle - 1)
    return low


@triton.jit
def list_groups(peaks, highest, listed, GROUPS: tl.constexpr, SPACE: tl.constexpr, LIST: tl.constexpr):
    """Store in `listed` i32 [LIST] the groups, in order, whose peak reaches a bound; returns it (u32) and their number.

    peaks f32 [GROUPS]: the largest logit of each group; highest: the largest of all; SPACE: a power of two. The bound
    is such that 3/4 of LIST groups or more reach it and at most LIST, unless equal peaks forbid it: then fewer. If LIST
    has room for all, every finite number reaches it.
    """
    group = tl.arange(0, SPACE)
    order = ordered(tl.load(peaks + group, group < GROUPS, float("-inf")))
    bound = tl.full([], 0x00800000, tl.uint32)
    if GROUPS > LIST:
        low = bound
        bound = ordered(highest) + 1
        count = tl.full([], 0, tl.int32)
        while (bound - low > 1) & (count < LIST // 4 * 3):
            middle = low + (bound - low) // 2
            reaching = tl.sum((order >= middle).to(tl.int32), axis=0)
            fit = reaching <= LIST
            count = tl.where(fit, reaching, count)
            bound = tl.where(fit, middle, bound)
            low = tl.where(fit, low, middle)
    hit = order >= bound
    tl.debug_barrier()  # the list before this one has been read
    tl.store(listed + tl.cumsum(hit.to(tl.int32), axis=0) - 1, group, hit)
    tl.debug_barrier()
    return bound, tl.sum(hit.to(tl.int32), axis=0)


@triton.jit
def load_listed(row, listed, count, bound, VOCAB: tl.constexpr, LIST: tl.constexpr, GROUP: tl.constexpr):
    """(groups i32 [LIST], ids i32 [LIST, GROUP], orders u32 [LIST, GROUP]) of a list; orders below the bound are 0."""
    place = tl.arange(0, LIST)
    group = tl.load(listed + place, place < count, 0)
    index = group[:, None] * GROUP + tl.arange(0, GROUP)[None, :]
    inside = (place[:, None] < count) & (index < VOCAB)
    order = ordered(tl.load(row + index, inside, float("-inf")))
    return group, index, tl.where(inside & (order >= bound), order, 0)


@triton.jit
def draw_listed(
    row,
    peaks,
    listed,
    maximum,
    sharpness,
    whole,
    top_k,
    top_p,
    min_p,
    share,
    VOCAB: tl.constexpr,
    GROUPS: tl.constexpr,
    SPACE: tl.constexpr,
    LIST: tl.constexpr,
    GROUP: tl.constexpr,
):
    """The token at `share` (f64, 0 to 1) of the weights that top_k (0: all), top_p and min_p keep; -1 if a logit below
    the list's bound may be among them. whole: the sum of all weights, f64."""
    bound, count = list_groups(peaks, maximum, listed, GROUPS, SPACE, LIST)
    group, _, order = load_listed(row, listed, count, bound, VOCAB, LIST, GROUP)
    least = bound
    # what is not listed weighs no more than the bound
    served = (GROUPS <= LIST) | (min_p > tl.exp((restored(bound) - maximum) * sharpness))
    if top_k > 0:
        served = tl.sum(tl.ravel((order > 0).to(tl.int32)), axis=0) >= top_k
        least = largest_reaching(order, tl.full(order.shape, 1, tl.int32), top_k, bound, ordered(maximum))
    # the list is not read again
    weight = tl.where(order >= least, tl.exp((restored(order) - maximum) * sharpness), 0.0)
    mass = whole.to(tl.float32)
    if top_k > 0:
        mass = tl.sum(tl.ravel(weight), axis=0)
    cut = min_p
    if top_p < 1.0:
        wanted = tl.maximum(top_p * mass, 1e-30)  # top_p 0 keeps the best
        if top_k == 0:
            served = served | (tl.sum(tl.ravel(weight), axis=0) >= wanted)
        bits = weight.to(tl.uint32, bitcast=True)
        least = largest_reaching(bits, weight, wanted, tl.full([], 0, tl.uint32), tl.full([], one(), tl.uint32))
        cut = tl.maximum(cut, least.to(tl.float32, bitcast=True))
    weight = tl.where(weight >= cut, weight, 0.0)
    sums = tl.sum(weight, axis=1).to(tl.float64)
    place = tl.arange(0, LIST)
    target = share * tl.sum(sums, axis=0)
    at = tl.min(tl.where(tl.cumsum(sums, axis=0) > target, place, LIST), axis=0)
    at = tl.minimum(at, tl.max(tl.where(sums > 0.0, place, 0), axis=0))
    rest = target - tl.sum(tl.where(place < at, sums, 0.0), axis=0)
    inner = first_above(tl.sum(tl.where(place[:, None] == at, weight, 0.0), axis=0), rest, GROUP)
    token = tl.sum(tl.where(place == at, group, 0), axis=0) * GROUP + inner
    return tl.where(served, token, -1)


@triton.jit
def first_above(weight, rest, SIZE: tl.constexpr):
    """The first of weights [SIZE] whose cumulative sum exceeds `rest`, or the last weight that is not 0."""
    index = tl.arange(0, SIZE)
    inner = tl.min(tl.where((tl.cumsum(weight, axis=0) > rest) & (weight > 0.0), index, SIZE), axis=0)
    return tl.minimum(inner, tl.max(tl.where(weight > 0.0, index, 0), axis=0))


@triton.jit
def best_listed(
    row,
    peaks,
    listed,
    maximum,
    wanted,
    ids,
    values,
    VOCAB: tl.constexpr,
    GROUPS: tl.constexpr,
    SPACE: tl.constexpr,
    LIST: tl.constexpr,
    GROUP: tl.constexpr,
):
    """Store the `wanted` largest of a row in ids and values: those above the least of them by id, then the least by id.

    False if the list does not have so many; nothing is stored then."""
    bound, count = list_groups(peaks, maximum, listed, GROUPS, SPACE, LIST)
    _, index, order = load_listed(row, listed, count, bound, VOCAB, LIST, GROUP)
    index, order = tl.ravel(index), tl.ravel(order)
    served = tl.sum((order > 0).to(tl.int32), axis=0) >= wanted
    if served:
        least = largest_reaching(order, tl.full(order.shape, 1, tl.int32), wanted, bound, ordered(maximum))
        above = order > least
        equal = (order == least) & (order > 0)
        slot = tl.cumsum(above.to(tl.int32), axis=0) - 1
        slot = tl.where(above, slot, tl.sum(above.to(tl.int32), axis=0) + tl.cumsum(equal.to(tl.int32), axis=0) - 1)
        stored = (above | equal) & (slot < wanted)
        tl.store(ids + slot, index, stored)
        tl.store(values + slot, restored(order), stored)
    return served
