"""Routing of mixture-of-experts layers: experts and weights of every token, and rows sorted by expert in whole blocks.

The rows of a step are its tokens * k assignments in the order of experts and, within one, of tokens, each expert's
padded to whole blocks: a block of the products that follow has one expert. How many blocks there are depends on the
router, so buffers and grids have room for the most there can be, and blocks beyond those in use are marked -1.
"""
# Triton's library is typed as if constants were no Python values and reductions might be tuples.
# pyright: reportOperatorIssue=false, reportArgumentType=false, reportAttributeAccessIssue=false
# pyright: reportCallIssue=false, reportIndexIssue=false

from __future__ import annotations

from collections.abc import Iterator

import torch
import triton
import triton.language as tl

from ..kernel import Call, Case, Kernel, Operand, Suite, next_power, product, total
from .moe_cases import TORCH, chosen_experts, sorted_rows
from .sample import ordered

MAX_EXPERTS, MAX_CHOSEN = 256, 8
SCORES = ("softmax", "sigmoid")
CHUNK = 1024
"""Assignments that a program of `sort_rows` looks at together."""


@triton.jit
def route_kernel(
    logits,
    bias,
    experts,
    weights,
    tokens,
    EXPERTS: tl.constexpr,
    CHOSEN: tl.constexpr,
    SCORE: tl.constexpr,
    RENORMALIZE: tl.constexpr,
    FACTOR: tl.constexpr,
    COLUMNS: tl.constexpr,
    SLOTS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """logits [tokens, EXPERTS] -> experts i32 and weights f32 [tokens, CHOSEN], the highest first, see `route`.

    Any logits, NaN too, give CHOSEN different experts in range: what follows uses them as addresses.
    """
    token = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    column = tl.arange(0, COLUMNS)
    slot = tl.arange(0, SLOTS)
    inside = (token[:, None] < tokens) & (column[None, :] < EXPERTS)
    logit = tl.load(logits + token[:, None].to(tl.int64) * EXPERTS + column[None, :], inside, 0.0).to(tl.float32)
    if SCORE == "softmax":
        known = tl.where(column[None, :] < EXPERTS, logit, float("-inf"))
        score = tl.exp(known - tl.max(known, axis=1)[:, None])
        score = score / tl.sum(score, axis=1)[:, None]
    else:
        score = 1.0 / (1.0 + tl.exp(-logit))
    # Scores keep the logits' order but may round different logits to one number, so without a bias logits decide.
    rank = logit
    if bias is not None:
        rank = score + tl.load(bias + column, column < EXPERTS, 0.0).to(tl.float32)[None, :]
    rank = tl.where(rank == rank, rank, float("-inf"))
    # 0 is below the order of every number: for columns that do not exist or are taken.
    key = tl.where(column[None, :] < EXPERTS, ordered(rank), 0)
    expert = tl.zeros([BLOCK, SLOTS], tl.int32)
    weight = tl.zeros([BLOCK, SLOTS], tl.float32)
    for turn in tl.static_range(CHOSEN):
        best = tl.argmax(key, axis=1, tie_break_left=True)
        hit = column[None, :] == best[:, None]
        key = tl.where(hit, 0, key)
        expert = tl.where(slot[None, :] == turn, best[:, None], expert)
        weight = tl.where(slot[None, :] == turn, tl.sum(tl.where(hit, score, 0.0), axis=1)[:, None], weight)
    if RENORMALIZE:
        weight = weight / (tl.sum(weight, axis=1)[:, None] + 1e-20)
    weight *= FACTOR
    address = token[:, None].to(tl.int64) * CHOSEN + slot[None, :]
    wanted = (token[:, None] < tokens) & (slot[None, :] < CHOSEN)
    tl.store(experts + address, expert, wanted)
    tl.store(weights + address, weight, wanted)


@triton.jit
def most_blocks(tokens, EXPERTS: tl.constexpr, CHOSEN: tl.constexpr, BLOCK_M: tl.constexpr):
    """`blocks_formula` on the device."""
    assignments = tokens * CHOSEN
    return (assignments + tl.minimum(assignments, EXPERTS) * (BLOCK_M - 1)) // BLOCK_M


@triton.jit
def sort_kernel(
    experts,
    token_of_row,
    row_of_assignment,
    expert_of_block,
    counts,
    offsets,
    tokens,
    EXPERTS: tl.constexpr,
    CHOSEN: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BINS: tl.constexpr,
    CHUNK: tl.constexpr,
):
    """experts i32 [tokens, CHOSEN] -> the tables of `sort_rows`; program e counts everything and places expert e."""
    mine = tl.program_id(0)
    expert = tl.arange(0, BINS)
    lane = tl.arange(0, CHUNK)
    assignments = tokens * CHOSEN
    count = tl.zeros([BINS], tl.int32)
    for start in range(0, assignments, CHUNK):
        inside = start + lane < assignments
        count += tl.histogram(tl.load(experts + start + lane, inside, 0), BINS, inside)
    blocks = (count + BLOCK_M - 1) // BLOCK_M
    first = tl.sum(tl.where(expert < mine, blocks, 0), axis=0)
    own = tl.sum(tl.where(expert == mine, blocks, 0), axis=0)
    used = tl.sum(blocks, axis=0)
    row = first * BLOCK_M
    tl.store(counts + mine, tl.sum(tl.where(expert == mine, count, 0), axis=0))
    tl.store(offsets + mine, row)
    for start in range(0, assignments, CHUNK):
        assignment = start + lane
        hit = (tl.load(experts + assignment, assignment < assignments, -1) == mine).to(tl.int32)
        place = row + tl.cumsum(hit, axis=0) - 1
        tl.store(token_of_row + place, assignment // CHOSEN, hit > 0)
        tl.store(row_of_assignment + assignment, place, hit > 0)
        row += tl.sum(hit, axis=0)
    padding = row + tl.arange(0, BLOCK_M)
    tl.store(token_of_row + padding, -1, padding < (first + own) * BLOCK_M)
    for start in range(0, own, CHUNK):
        tl.store(expert_of_block + first + start + lane, mine, start + lane < own)
    # Every program marks its share of the blocks that are not in use.
    most = most_blocks(tokens, EXPERTS, CHOSEN, BLOCK_M)
    for start in range(used + mine * CHUNK, most, EXPERTS * CHUNK):
        tl.store(expert_of_block + start + lane, -1, start + lane < most)
    for start in range(used * BLOCK_M + mine * CHUNK, most * BLOCK_M, EXPERTS * CHUNK):
        tl.store(token_of_row + start + lane, -1, start + lane < most * BLOCK_M)


ROUTE = Kernel("moe_route", route_kernel)
SORT = Kernel("moe_sort", sort_kernel)


def blocks_formula(experts: int, chosen: int, block_m: int) -> str:
    """The most blocks of `block_m` rows that a step's assignments can fill: one more row in each expert's last."""
    return f"(tokens * {chosen} + min({experts}, tokens * {chosen}) * {block_m - 1}) // {block_m}"


def route(
    logits: Operand,
    experts: Operand,
    weights: Operand,
    *,
    score: str,
    renormalize: bool = False,
    factor: float = 1.0,
    bias: Operand | None = None,
) -> Call:
    """logits [tokens, E] -> the k highest experts i32 [tokens, k], the lower id of equals, and weights f32 [tokens, k].

    score: "softmax" over all experts or "sigmoid"; renormalize: the k weights then sum to 1 (with softmax this is the
    softmax of the k logits); factor: what they are multiplied by at last. bias [E] is added to scores for the choice
    only (DeepSeek-AI, "DeepSeek-V3 technical report", 2024, section 2.1.2).

    Raises:
        ValueError: more than 256 experts, k not from 1 to min(8, E), or an unknown score.
    """
    tokens, count = logits.shape
    chosen = experts.shape[-1]
    assert isinstance(count, int) and isinstance(chosen, int)
    _check(count, chosen)
    if score not in SCORES:
        raise ValueError(f"route: score {score!r}, not one of {SCORES}")
    columns = next_power(count)
    block = max(1, CHUNK // columns)
    arguments = {"logits": logits, "experts": experts, "weights": weights, "tokens": str(tokens)}
    return Call(
        ROUTE,
        {**arguments, **({} if bias is None else {"bias": bias})},
        {
            **({"bias": None} if bias is None else {}),
            "EXPERTS": count,
            "CHOSEN": chosen,
            "SCORE": score,
            "RENORMALIZE": renormalize,
            "FACTOR": factor,
            "COLUMNS": columns,
            "SLOTS": next_power(chosen),
            "BLOCK": block,
        },
        (f"cdiv({tokens}, {block})",),
        writes=("experts", "weights"),
        bytes=total(*(o.bytes for o in (logits, experts, weights, bias) if o is not None)),
        operations=product(tokens, (5 + 2 * chosen) * count),
    )


def sort_rows(
    experts: Operand,
    token_of_row: Operand,
    row_of_assignment: Operand,
    expert_of_block: Operand,
    counts: Operand,
    offsets: Operand,
    *,
    block_m: int,
) -> Call:
    """experts i32 [tokens, k], each in range -> the order of rows in which experts are computed; all i32.

    token_of_row [blocks * block_m], -1 for padding; row_of_assignment [tokens, k]; expert_of_block [blocks], -1 for
    blocks not in use, which are the last; counts and offsets [E]: assignments of each expert and its first row. The
    sort is stable, so results depend on nothing but `experts`. blocks: `blocks_formula`; block_m: a power of two.

    Raises:
        ValueError: more than 256 experts, or k not from 1 to min(8, E).
    """
    tokens, chosen = experts.shape
    (count,) = counts.shape
    assert isinstance(count, int) and isinstance(chosen, int)
    _check(count, chosen)
    written = {
        "token_of_row": token_of_row,
        "row_of_assignment": row_of_assignment,
        "expert_of_block": expert_of_block,
        "counts": counts,
        "offsets": offsets,
    }
    return Call(
        SORT,
        {"experts": experts, **written, "tokens": str(tokens)},
        {"EXPERTS": count, "CHOSEN": chosen, "BLOCK_M": block_m, "BINS": next_power(count), "CHUNK": CHUNK},
        (count,),
        writes=tuple(written),
        bytes=total(experts.bytes, *(o.bytes for o in written.values())),
        operations=product(tokens, 2 * chosen),
    )


def sort_operands(experts: int, chosen: int, block_m: int) -> tuple[Operand, ...]:
    """The operands of `sort_rows` in its order."""
    blocks = blocks_formula(experts, chosen, block_m)
    return (
        Operand("experts", "i32", ("tokens", chosen)),
        Operand("token_of_row", "i32", (product(blocks, block_m),)),
        Operand("row_of_assignment", "i32", ("tokens", chosen)),
        Operand("expert_of_block", "i32", (blocks,)),
        Operand("counts", "i32", (experts,)),
        Operand("offsets", "i32", (experts,)),
    )


def _check(experts: int, chosen: int) -> None:
    if experts > MAX_EXPERTS or not 1 <= chosen <= min(MAX_CHOSEN, experts):
        raise ValueError(f"{chosen} of {experts} experts: at most {MAX_CHOSEN} of at most {MAX_EXPERTS}")


def _route_call(
    count: int, chosen: int, dtype: str, score: str, renormalize: bool, factor: float, bias: str | None
) -> Call:
    return route(
        Operand("logits", dtype, ("tokens", count)),
        Operand("experts", "i32", ("tokens", chosen)),
        Operand("weights", "f32", ("tokens", chosen)),
        score=score,
        renormalize=renormalize,
        factor=factor,
        bias=None if bias is None else Operand("bias", bias, (count,)),
    )


def _cases() -> Iterator[Case]:
    random = torch.Generator().manual_seed(3)
    for tokens, count, chosen, dtype, score, renormalize, factor, bias in (
        (1, 8, 2, "bf16", "softmax", True, 1.0, None),
        (33, 5, 1, "f32", "softmax", False, 1.0, None),
        (33, 32, 4, "f16", "softmax", True, 1.0, "f32"),
        (17, 256, 8, "f32", "sigmoid", True, 2.5, "f32"),
        (300, 4, 4, "bf16", "sigmoid", False, 0.5, None),
    ):
        logits = (torch.randn(tokens, count, generator=random) * 2).to(TORCH[dtype])
        logits[0] = 1.0
        inputs = {"logits": logits}
        if bias is not None:
            inputs["bias"] = torch.randn(count, generator=random).to(TORCH[bias])
        call = _route_call(count, chosen, dtype, score, renormalize, factor, bias)
        experts, weights = chosen_experts(logits, chosen, score, renormalize, factor, inputs.get("bias"))
        name = f"route-{score}-{dtype}-{tokens}x{count}-{chosen}"
        yield Case(name, call, inputs, {"tokens": tokens}, {"experts": experts, "weights": weights}, 1e-6)
    wild = torch.full((4, 5), float("nan"))
    wild[1, 3], wild[2], wild[3] = float("inf"), float("-inf"), torch.tensor([-1e30, 90.0, 100.0, 100.0, -0.0])
    experts = torch.tensor([[0, 1, 2], [3, 0, 1], [0, 1, 2], [2, 3, 1]])
    call = _route_call(5, 3, "f32", "sigmoid", False, 1.0, None)
    yield Case("route-wild", call, {"logits": wild}, {"tokens": 4}, {"experts": experts}, 0.0)
    for tokens, count, chosen, block_m, only in (
        (1, 8, 2, 16, None),
        (33, 5, 1, 16, None),
        (33, 5, 2, 16, 4),
        (33, 32, 4, 16, None),
        (700, 5, 2, 64, 3),
        (3, 256, 8, 16, None),
        (300, 5, 4, 128, None),
    ):
        # `only`: the experts from this one on get no token.
        scores = torch.rand(tokens, only or count, generator=random)
        experts = scores.argsort(dim=1)[:, :chosen].to(torch.int32)
        yield _sort_case(f"{tokens}x{count}-{chosen}-{block_m}", experts, count, block_m)
    yield _sort_case("one-expert", torch.full((33, 1), 2, dtype=torch.int32), 5, 16)


def _sort_case(name: str, experts: torch.Tensor, count: int, block_m: int) -> Case:
    tokens, chosen = experts.shape
    call = sort_rows(*sort_operands(count, chosen, block_m), block_m=block_m)
    tables = sorted_rows(experts, count, block_m)
    # Tables start as neither what is expected nor what marks padding.
    inputs = {name: torch.full_like(table, 7) for name, table in tables.items()} | {"experts": experts}
    return Case(f"sort-{name}", call, inputs, {"tokens": tokens}, tables, 0.0)


def _calls(sm: int) -> Iterator[Call]:
    for count, chosen, block_m in ((8, 2, 16), (8, 2, 128), (32, 4, 16), (32, 4, 128)):
        yield sort_rows(*sort_operands(count, chosen, block_m), block_m=block_m)
    yield _route_call(8, 2, "bf16", "softmax", True, 1.0, None)
    yield _route_call(32, 4, "bf16", "softmax", True, 1.0, None)
    yield _route_call(256, 8, "f32", "sigmoid", True, 2.5, "f32")


SUITE = Suite((ROUTE, SORT), _cases, _calls)
