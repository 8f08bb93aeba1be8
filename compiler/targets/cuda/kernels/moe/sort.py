"""Sorts assignments of tokens to experts by expert, so that a block of rows has one expert.

The rows of a step are its tokens * k assignments, sorted by expert and then by token; each expert's rows are padded to
whole blocks, so a block of the following products has one expert. The number of blocks depends on the router: buffers
and grids have room for the most there can be, and unused blocks are marked -1.
"""
# Triton's type stubs reject Python values as constants, and type reductions as if they might be tuples.
# pyright: reportOperatorIssue=false, reportArgumentType=false, reportAttributeAccessIssue=false
# pyright: reportCallIssue=false, reportIndexIssue=false

from __future__ import annotations

from collections.abc import Iterator

import torch
import triton
import triton.language as tl

from ...call import Case, Kernel, KernelCall, Operand, Suite, next_power, product, total
from .route import check_experts

CHUNK = 1024
"""Assignments that a program processes at a time."""


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
    """experts i32 [tokens, CHOSEN] -> the tables of `sort_rows`; program e counts all experts and places expert e."""
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
    # Every program marks its share of the unused blocks.
    most = most_blocks(tokens, EXPERTS, CHOSEN, BLOCK_M)
    for start in range(used + mine * CHUNK, most, EXPERTS * CHUNK):
        tl.store(expert_of_block + start + lane, -1, start + lane < most)
    for start in range(used * BLOCK_M + mine * CHUNK, most * BLOCK_M, EXPERTS * CHUNK):
        tl.store(token_of_row + start + lane, -1, start + lane < most * BLOCK_M)


KERNEL = Kernel("moe_sort", sort_kernel)


def blocks_formula(experts: int, chosen: int, block_m: int) -> str:
    """The most blocks of `block_m` rows that a step's assignments can fill: each expert's last block has one row."""
    return f"(tokens * {chosen} + min({experts}, tokens * {chosen}) * {block_m - 1}) // {block_m}"


def sort_rows(
    experts: Operand,
    token_of_row: Operand,
    row_of_assignment: Operand,
    expert_of_block: Operand,
    counts: Operand,
    offsets: Operand,
    *,
    block_m: int,
) -> KernelCall:
    """experts i32 [tokens, k], each in range -> the tables of rows sorted by expert; all are i32.

    token_of_row [blocks * block_m], -1 for padding; row_of_assignment [tokens, k]; expert_of_block [blocks], -1 for
    unused blocks, which come last; counts and offsets [E], the number of assignments and the first row of each expert.
    `blocks_formula` gives the number of blocks; block_m is a power of two. The sort is stable, so results depend only
    on `experts`.

    Raises:
        ValueError: more than 256 experts, or k not from 1 to min(8, E).
    """
    tokens, chosen = experts.shape
    (count,) = counts.shape
    assert isinstance(count, int) and isinstance(chosen, int)
    check_experts(count, chosen)
    written = {
        "token_of_row": token_of_row,
        "row_of_assignment": row_of_assignment,
        "expert_of_block": expert_of_block,
        "counts": counts,
        "offsets": offsets,
    }
    return KernelCall(
        KERNEL,
        {"experts": experts, **written, "tokens": str(tokens)},
        {"EXPERTS": count, "CHOSEN": chosen, "BLOCK_M": block_m, "BINS": next_power(count), "CHUNK": CHUNK},
        (count,),
        writes=tuple(written),
        bytes=total(experts.bytes, *(o.bytes for o in written.values())),
        operations=product(tokens, 2 * chosen),
    )


def sort_operands(experts: int, chosen: int, block_m: int) -> tuple[Operand, ...]:
    """The operands of `sort_rows` in order."""
    blocks = blocks_formula(experts, chosen, block_m)
    return (
        Operand("experts", "i32", ("tokens", chosen)),
        Operand("token_of_row", "i32", (product(blocks, block_m),)),
        Operand("row_of_assignment", "i32", ("tokens", chosen)),
        Operand("expert_of_block", "i32", (blocks,)),
        Operand("counts", "i32", (experts,)),
        Operand("offsets", "i32", (experts,)),
    )


def sorted_rows(experts: torch.Tensor, count: int, block_m: int) -> dict[str, torch.Tensor]:
    """The reference of `sort_rows` for experts [tokens, k], by operand name; unused rows and blocks are -1."""
    tokens, chosen = experts.shape
    assignments = tokens * chosen
    blocks = (assignments + min(count, assignments) * (block_m - 1)) // block_m
    token_of_row = torch.full((blocks * block_m,), -1, dtype=torch.int32)
    expert_of_block = torch.full((blocks,), -1, dtype=torch.int32)
    row_of = torch.zeros(assignments, dtype=torch.int32)
    counts, offsets = (torch.zeros(count, dtype=torch.int32) for _ in range(2))
    row = 0
    for expert in range(count):
        mine = (experts.reshape(-1) == expert).nonzero()[:, 0]
        offsets[expert], counts[expert] = row, len(mine)
        row_of[mine] = torch.arange(row, row + len(mine), dtype=torch.int32)
        token_of_row[row : row + len(mine)] = (mine // chosen).int()
        end = row + -(-len(mine) // block_m) * block_m
        expert_of_block[row // block_m : end // block_m] = expert
        row = end
    return {
        "token_of_row": token_of_row,
        "row_of_assignment": row_of.reshape(tokens, chosen),
        "expert_of_block": expert_of_block,
        "counts": counts,
        "offsets": offsets,
    }


def _cases() -> Iterator[Case]:
    random = torch.Generator().manual_seed(3)
    for tokens, count, chosen, block_m, only in (
        (1, 8, 2, 16, None),
        (33, 5, 1, 16, None),
        (33, 5, 2, 16, 4),
        (33, 32, 4, 16, None),
        (700, 5, 2, 64, 3),
        (3, 256, 8, 16, None),
        (300, 5, 4, 128, None),
    ):
        # Experts from `only` on get no token.
        scores = torch.rand(tokens, only or count, generator=random)
        experts = scores.argsort(dim=1)[:, :chosen].to(torch.int32)
        yield _sort_case(f"{tokens}x{count}-{chosen}-{block_m}", experts, count, block_m)
    yield _sort_case("one-expert", torch.full((33, 1), 2, dtype=torch.int32), 5, 16)


def _sort_case(name: str, experts: torch.Tensor, count: int, block_m: int) -> Case:
    tokens, chosen = experts.shape
    call = sort_rows(*sort_operands(count, chosen, block_m), block_m=block_m)
    tables = sorted_rows(experts, count, block_m)
    # Tables start with a value that is neither expected nor the mark of padding.
    inputs = {name: torch.full_like(table, 7) for name, table in tables.items()} | {"experts": experts}
    return Case(name, call, inputs, {"tokens": tokens}, tables, 0.0)


def _calls(sm: int) -> Iterator[KernelCall]:
    for count, chosen, block_m in ((8, 2, 16), (8, 2, 128), (32, 4, 16), (32, 4, 128)):
        yield sort_rows(*sort_operands(count, chosen, block_m), block_m=block_m)


SUITE = Suite((KERNEL,), _cases, _calls)
