"""Routing of mixture-of-experts layers: the experts of each token, and their weights."""
# Triton's type stubs reject Python values as constants, and type reductions as if they might be tuples.
# pyright: reportOperatorIssue=false, reportArgumentType=false, reportAttributeAccessIssue=false
# pyright: reportCallIssue=false, reportIndexIssue=false, reportGeneralTypeIssues=false

from __future__ import annotations

from collections.abc import Iterator

import triton
import triton.language as tl

from ...call import Case, Kernel, KernelCall, Operand, Suite, next_power, product, total
from ..sampling.candidates import ordered
from . import selection
from .selection import Routing

MAX_EXPERTS, MAX_CHOSEN = 512, 16
SCORES_OF_PROGRAM = 1024
"""Scores that a program of `route` processes."""


@triton.jit
def hit_of(key, COLUMNS: tl.constexpr):
    """(the place of the largest key in each row [BLOCK], where it is [BLOCK, COLUMNS]); of equal ones the first."""
    best = tl.argmax(key, axis=1, tie_break_left=True)
    return best, tl.arange(0, COLUMNS)[None, :] == best[:, None]


@triton.jit
def only(values, hit):
    """The value at the place that `hit` marks in each row, whatever the others are."""
    return tl.sum(tl.where(hit, values, 0.0), axis=1)


@triton.jit
def in_best_groups(
    rank,
    real,
    GROUPS: tl.constexpr,
    EACH: tl.constexpr,
    KEPT: tl.constexpr,
    BEST: tl.constexpr,
    COLUMNS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """rank [BLOCK, COLUMNS], -inf outside the KEPT groups with the largest sums of their BEST highest ranks."""
    ROOM: tl.constexpr = COLUMNS // EACH
    key = tl.reshape(tl.where(real, ordered(rank), 0), [BLOCK * ROOM, EACH])
    number = tl.reshape(rank, [BLOCK * ROOM, EACH])
    sums = tl.zeros([BLOCK * ROOM], tl.float32)
    for _ in tl.static_range(BEST):
        _best, hit = hit_of(key, EACH)
        sums += only(number, hit)
        key = tl.where(hit, 0, key)
    group = tl.arange(0, ROOM)[None, :]
    sums = tl.reshape(sums, [BLOCK, ROOM])
    sums = tl.where(sums == sums, sums, float("-inf"))
    key = tl.where(group < GROUPS, ordered(sums), 0)
    open = tl.zeros([BLOCK, ROOM], tl.int32)
    for _ in tl.static_range(KEPT):
        _best, hit = hit_of(key, ROOM)
        open = tl.where(hit, 1, open)
        key = tl.where(hit, 0, key)
    open = tl.reshape(tl.broadcast_to(open[:, :, None], [BLOCK, ROOM, EACH]), [BLOCK, COLUMNS])
    return tl.where(open > 0, rank, float("-inf"))


@triton.jit
def share_near(logit, known, best, BAND: tl.constexpr):
    """The share of the largest of `known` [BLOCK, COLUMNS], `best` [BLOCK], in the softmax of those near it.

    Near is what lies no more than BAND below it, as a part of the larger of it and the absolute value of `logit`.
    """
    floor = tl.maximum(tl.abs(logit), best[:, None])
    far = (best[:, None] - logit) / floor > BAND
    return 1.0 / tl.sum(tl.where(far, 0.0, tl.exp(known - best[:, None])), axis=1)


@triton.jit
def route_kernel(
    logits,
    bias,
    scales,
    experts,
    weights,
    tokens,
    EXPERTS: tl.constexpr,
    CHOSEN: tl.constexpr,
    KIND: tl.constexpr,
    NORMED: tl.constexpr,
    LEAST: tl.constexpr,
    FACTOR: tl.constexpr,
    GROUPS: tl.constexpr,
    KEPT: tl.constexpr,
    BEST: tl.constexpr,
    BAND: tl.constexpr,
    EACH: tl.constexpr,
    COLUMNS: tl.constexpr,
    SLOTS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """logits [tokens, EXPERTS] -> experts i32 and weights f32 [tokens, CHOSEN], the highest first; see `route`.

    All logits, even NaN, give CHOSEN different experts in range, because later kernels use them as addresses. A group
    has EACH columns, a power of two, some of which are no experts.
    """
    token = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    column = tl.arange(0, COLUMNS)
    slot = tl.arange(0, SLOTS)
    SIZE: tl.constexpr = EXPERTS // GROUPS
    group = column // EACH
    expert_of = group * SIZE + column % EACH
    known = (group < GROUPS) & (column % EACH < SIZE)
    real = (token[:, None] < tokens) & known[None, :]
    address = token[:, None].to(tl.int64) * EXPERTS + expert_of[None, :]
    logit = tl.load(logits + address, real, 0.0).to(tl.float32)
    logit = tl.where(known[None, :], logit, float("-inf"))
    if KIND == "softmax":
        score = tl.exp(logit - tl.max(logit, axis=1)[:, None])
        score = score / tl.sum(score, axis=1)[:, None]
    elif KIND == "sigmoid":
        score = 1.0 / (1.0 + tl.exp(-logit))
    else:
        score = logit
    # Different logits may round to equal scores, so without a bias or groups experts are ranked by logits.
    rank = logit if GROUPS == 1 else score
    if bias is not None:
        rank = score + tl.load(bias + expert_of, known, 0.0).to(tl.float32)[None, :]
    rank = tl.where(known[None, :] & (rank == rank), rank, float("-inf"))
    if GROUPS > 1:
        rank = in_best_groups(rank, known[None, :], GROUPS, EACH, KEPT, BEST, COLUMNS, BLOCK)
    # Columns that are no expert, or already chosen, get 0, which is below the order of every number.
    key = tl.where(known[None, :], ordered(rank), 0)
    expert = tl.zeros([BLOCK, SLOTS], tl.int32)
    weight = tl.zeros([BLOCK, SLOTS], tl.float32)
    rest = logit
    for turn in tl.static_range(CHOSEN):
        best, hit = hit_of(key, COLUMNS)
        key = tl.where(hit, 0, key)
        own = only(score, hit)
        if KIND == "sparsemixer":
            own_weight = share_near(logit, rest, own, BAND)
            rest = tl.where(hit, float("-inf"), rest)
        else:
            own_weight = own
        chosen = best // EACH * SIZE + best % EACH
        expert = tl.where(slot[None, :] == turn, chosen[:, None], expert)
        weight = tl.where(slot[None, :] == turn, own_weight[:, None], weight)
    if KIND == "chosen":
        weight = tl.where(slot[None, :] < CHOSEN, weight, float("-inf"))
        weight = tl.exp(weight - tl.max(weight, axis=1)[:, None])
        weight = weight / tl.sum(weight, axis=1)[:, None]
    if NORMED:
        sums = tl.sum(weight, axis=1)
        weight = weight / tl.maximum(sums, LEAST, propagate_nan=tl.PropagateNan.ALL)[:, None]
    weight *= FACTOR
    if scales is not None:
        weight *= tl.load(scales + expert).to(tl.float32)
    address = token[:, None].to(tl.int64) * CHOSEN + slot[None, :]
    wanted = (token[:, None] < tokens) & (slot[None, :] < CHOSEN)
    tl.store(experts + address, expert, wanted)
    tl.store(weights + address, weight, wanted)


KERNEL = Kernel("moe_route", route_kernel)


def check_experts(experts: int, chosen: int) -> None:
    """Whether kernels take so many.

    Raises:
        ValueError: they do not.
    """
    if experts > MAX_EXPERTS or not 1 <= chosen <= min(MAX_CHOSEN, experts):
        raise ValueError(f"{chosen} of {experts} experts: at most {MAX_CHOSEN} of at most {MAX_EXPERTS}")


def route(
    logits: Operand,
    experts: Operand,
    weights: Operand,
    routing: Routing,
    *,
    bias: Operand | None = None,
    scales: Operand | None = None,
) -> KernelCall:
    """logits [tokens, E] -> the k highest experts i32 [tokens, k] (of equals the lower id), weights f32 [tokens, k].

    What is computed is the definition of `Route`. `bias` [E] is added to the scores for the choice only (DeepSeek-AI,
    "DeepSeek-V3 technical report", 2024, section 2.1.2), `scales` [E] multiply the weights.

    Raises:
        ValueError: more than 512 experts, or k not from 1 to min(16, E).
    """
    tokens, count = logits.shape
    chosen = experts.shape[-1]
    assert isinstance(count, int) and isinstance(chosen, int) and count % routing.groups == 0
    check_experts(count, chosen)
    each = next_power(count // routing.groups)
    columns = each * next_power(routing.groups)
    block = max(1, SCORES_OF_PROGRAM // columns)
    arguments = {"logits": logits, "experts": experts, "weights": weights, "tokens": str(tokens)}
    optional = {"bias": bias, "scales": scales}
    return KernelCall(
        KERNEL,
        {**arguments, **{name: one for name, one in optional.items() if one is not None}},
        {
            **{name: None for name, one in optional.items() if one is None},
            "EXPERTS": count,
            "CHOSEN": chosen,
            "KIND": routing.kind,
            "NORMED": routing.normed,
            "LEAST": routing.least,
            "FACTOR": routing.factor,
            "GROUPS": routing.groups,
            "KEPT": routing.kept,
            "BEST": min(routing.best, count // routing.groups),
            "BAND": 2 * routing.jitter,
            "EACH": each,
            "COLUMNS": columns,
            "SLOTS": next_power(chosen),
            "BLOCK": block,
        },
        (f"cdiv({tokens}, {block})",),
        writes=("experts", "weights"),
        bytes=total(*(o.bytes for o in (logits, experts, weights, bias, scales) if o is not None)),
        operations=product(tokens, (5 + 2 * chosen) * count),
    )


def _cases() -> Iterator[Case]:
    return selection.cases(route)


def _calls(sm: int) -> Iterator[KernelCall]:
    return selection.calls(route)


SUITE = Suite((KERNEL,), _cases, _calls)
