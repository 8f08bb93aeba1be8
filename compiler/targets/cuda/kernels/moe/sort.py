"""Sorts assignments of tokens to experts by expert, so that a block of rows has one expert.

The rows of a step are its tokens * k assignments, sorted by expert and then by token; each expert's rows are padded to
whole blocks, so a block of the following products has one expert. The number of blocks depends on the router: buffers
and grids have room for the most there can be, and unused blocks are marked -1. A rank that has only some of the experts
has no rows for the others.
"""
# Triton's type stubs reject Python values as constants, and type reductions as if they might be tuples.
# pyright: reportOperatorIssue=false, reportArgumentType=false, reportAttributeAccessIssue=false
# pyright: reportCallIssue=false, reportIndexIssue=false

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

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
    assignments = tokens * (CHOSEN if CHOSEN < EXPERTS else EXPERTS)
    return (assignments + tl.minimum(assignments, EXPERTS) * (BLOCK_M - 1)) // BLOCK_M


@triton.jit
def sort_kernel(
    experts,
    assignment_of_row,
    row_of_assignment,
    expert_of_block,
    tokens,
    begin,
    EXPERTS: tl.constexpr,
    CHOSEN: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BINS: tl.constexpr,
    CHUNK: tl.constexpr,
):
    """experts i32 [tokens, CHOSEN] -> the tables of `sort_rows`; program e counts all experts and places expert e.

    Experts are those from `begin` on; the assignments to others have no row.
    """
    mine = tl.program_id(0)
    expert = tl.arange(0, BINS)
    lane = tl.arange(0, CHUNK)
    assignments = tokens * CHOSEN
    count = tl.zeros([BINS], tl.int32)
    for start in range(0, assignments, CHUNK):
        local = tl.load(experts + start + lane, start + lane < assignments, -1) - begin
        count += tl.histogram(local, BINS, (local >= 0) & (local < EXPERTS))
    blocks = (count + BLOCK_M - 1) // BLOCK_M
    first = tl.sum(tl.where(expert < mine, blocks, 0), axis=0)
    own = tl.sum(tl.where(expert == mine, blocks, 0), axis=0)
    used = tl.sum(blocks, axis=0)
    row = first * BLOCK_M
    for start in range(0, assignments, CHUNK):
        assignment = start + lane
        local = tl.load(experts + assignment, assignment < assignments, -1) - begin
        hit = ((local == mine) & (assignment < assignments)).to(tl.int32)
        place = row + tl.cumsum(hit, axis=0) - 1
        tl.store(assignment_of_row + place, assignment, hit > 0)
        tl.store(row_of_assignment + assignment, place, hit > 0)
        if mine == 0:
            elsewhere = (local < 0) | (local >= EXPERTS)
            tl.store(row_of_assignment + assignment, -1, elsewhere & (assignment < assignments))
        row += tl.sum(hit, axis=0)
    padding = row + tl.arange(0, BLOCK_M)
    tl.store(assignment_of_row + padding, -1, padding < (first + own) * BLOCK_M)
    for start in range(0, own, CHUNK):
        tl.store(expert_of_block + first + start + lane, mine, start + lane < own)
    # Every program marks its share of the unused blocks.
    most = most_blocks(tokens, EXPERTS, CHOSEN, BLOCK_M)
    for start in range(used + mine * CHUNK, most, EXPERTS * CHUNK):
        tl.store(expert_of_block + start + lane, -1, start + lane < most)
    for start in range(used * BLOCK_M + mine * CHUNK, most * BLOCK_M, EXPERTS * CHUNK):
        tl.store(assignment_of_row + start + lane, -1, start + lane < most * BLOCK_M)


KERNEL = Kernel("moe_sort", sort_kernel)


def blocks_formula(tokens: str, experts: int, chosen: int, block_m: int) -> str:
    """The most blocks of `block_m` rows that a step's assignments can fill: each expert's last block has one row.

    A token's experts are all different, so to few experts there are few assignments.
    """
    most = product(tokens, min(experts, chosen))
    return f"({most} + min({experts}, {most}) * {block_m - 1}) // {block_m}"


@dataclass(frozen=True)
class Sorted:
    """The tables of `sort_rows`, all i32, for `experts` experts."""

    assignment_of_row: Operand
    """[blocks * block_m], the number of an assignment, token * k + slot; -1 for padding."""
    row_of_assignment: Operand
    """[tokens, k], -1 for the assignments that have no row."""
    expert_of_block: Operand
    """[blocks], -1 for unused blocks, which come last."""
    experts: int
    block_m: int
    of: int
    """Experts of all ranks, among which tokens choose."""

    @staticmethod
    def made(make: Callable[..., Operand], tokens: str, experts: int, chosen: int, block_m: int, of: int = 0) -> Sorted:
        """Made by `make` of a name, dtype and shape, with room for the most rows that there can be; `of` 0: all."""
        blocks = blocks_formula(tokens, experts, chosen, block_m)
        return Sorted(
            make("assignment_of_row", "i32", product(blocks, block_m)),
            make("row_of_assignment", "i32", tokens, chosen),
            make("expert_of_block", "i32", blocks),
            experts,
            block_m,
            of or experts,
        )

    @property
    def rows(self) -> str:
        return str(self.assignment_of_row.shape[0])

    @property
    def blocks(self) -> str:
        return str(self.expert_of_block.shape[0])

    @property
    def tokens(self) -> str:
        return str(self.row_of_assignment.shape[0])

    @property
    def chosen(self) -> int:
        chosen = self.row_of_assignment.shape[1]
        assert isinstance(chosen, int)
        return chosen

    @property
    def expected(self) -> str:
        """The rows to expect, for prices: all ranks have their share of the assignments."""
        return (
            product(self.tokens, self.chosen)
            if self.of == self.experts
            else (f"cdiv({product(self.tokens, self.chosen * self.experts)}, {self.of})")
        )

    def read(self, nbytes: str) -> str:
        """Of the bytes of all these experts, those of the experts that have a row, as is to be expected: for prices."""
        return f"spread({nbytes}, {self.of}, {self.chosen}, {self.tokens})"


def sort_rows(experts: Operand, tables: Sorted, *, begin: int = 0) -> KernelCall:
    """experts i32 [tokens, k], of a token all different -> the tables of rows sorted by expert.

    The tables are of the experts from `begin` on; the assignments to others have no row. block_m is a power of two. The
    sort is stable, so results depend only on `experts`.

    Raises:
        ValueError: more than 512 experts, or k not from 1 to 16.
    """
    tokens, chosen = experts.shape
    assert isinstance(chosen, int)
    check_experts(max(tables.experts, chosen), chosen)
    written = {
        "assignment_of_row": tables.assignment_of_row,
        "row_of_assignment": tables.row_of_assignment,
        "expert_of_block": tables.expert_of_block,
    }
    return KernelCall(
        KERNEL,
        {"experts": experts, **written, "tokens": str(tokens), "begin": begin},
        {
            "EXPERTS": tables.experts,
            "CHOSEN": chosen,
            "BLOCK_M": tables.block_m,
            "BINS": next_power(tables.experts),
            "CHUNK": CHUNK,
        },
        (tables.experts,),
        writes=tuple(written),
        bytes=total(experts.bytes, *(o.bytes for o in written.values())),
        operations=product(tokens, 2 * chosen),
    )


def sorted_rows(experts: torch.Tensor, count: int, block_m: int, begin: int = 0) -> dict[str, torch.Tensor]:
    """The reference of `sort_rows` for experts [tokens, k], by operand name; what has no row or token is -1."""
    tokens, chosen = experts.shape
    most = tokens * min(chosen, count)
    blocks = (most + min(count, most) * (block_m - 1)) // block_m
    assignment_of_row = torch.full((blocks * block_m,), -1, dtype=torch.int32)
    expert_of_block = torch.full((blocks,), -1, dtype=torch.int32)
    row_of = torch.full((tokens * chosen,), -1, dtype=torch.int32)
    row = 0
    for expert in range(count):
        mine = (experts.reshape(-1) == begin + expert).nonzero()[:, 0]
        row_of[mine] = torch.arange(row, row + len(mine), dtype=torch.int32)
        assignment_of_row[row : row + len(mine)] = mine.int()
        end = row + -(-len(mine) // block_m) * block_m
        expert_of_block[row // block_m : end // block_m] = expert
        row = end
    return {
        "assignment_of_row": assignment_of_row,
        "row_of_assignment": row_of.reshape(tokens, chosen),
        "expert_of_block": expert_of_block,
    }


def _cases() -> Iterator[Case]:
    random = torch.Generator().manual_seed(3)
    for tokens, count, chosen, block_m, only in (
        (1, 8, 2, 16, None),
        (33, 5, 1, 16, None),
        (33, 5, 2, 16, 4),
        (33, 32, 4, 16, None),
        (700, 5, 2, 64, 3),
        (3, 512, 16, 16, None),
        (300, 5, 4, 128, None),
    ):
        # Experts from `only` on get no token.
        scores = torch.rand(tokens, only or count, generator=random)
        experts = scores.argsort(dim=1)[:, :chosen].to(torch.int32)
        yield _sort_case(f"{tokens}x{count}-{chosen}-{block_m}", experts, count, block_m)
    yield _sort_case("one-expert", torch.full((33, 1), 2, dtype=torch.int32), 5, 16)
    chosen = torch.rand(300, 16, generator=random).argsort(dim=1)[:, :5].to(torch.int32)
    for begin, count in ((0, 4), (4, 4), (12, 3), (15, 1)):  # of 16 experts, the others on other ranks
        yield _sort_case(f"part-{begin}-{count}", chosen, count, 16, begin)
    yield _sort_case("part-idle", torch.tensor([[0, 3], [1, 2]], dtype=torch.int32), 4, 16, 4)


def _sort_case(name: str, experts: torch.Tensor, count: int, block_m: int, begin: int = 0) -> Case:
    tokens, chosen = experts.shape
    of = Sorted.made(Operand.of, "tokens", count, chosen, block_m)
    call = sort_rows(Operand("experts", "i32", ("tokens", chosen)), of, begin=begin)
    tables = sorted_rows(experts, count, block_m, begin)
    # Tables start with a value that is neither expected nor the mark of padding.
    inputs = {name: torch.full_like(table, 7) for name, table in tables.items()} | {"experts": experts}
    return Case(name, call, inputs, {"tokens": tokens}, tables, 0.0)


def _calls(sm: int) -> Iterator[KernelCall]:
    for count, chosen, block_m, begin in (
        (8, 2, 16, 0),
        (8, 2, 128, 0),
        (32, 4, 16, 0),
        (128, 8, 16, 0),
        (128, 8, 128, 0),
        (32, 8, 16, 64),
    ):
        of = Sorted.made(Operand.of, "tokens", count, chosen, block_m)
        yield sort_rows(Operand("experts", "i32", ("tokens", chosen)), of, begin=begin)


SUITE = Suite((KERNEL,), _cases, _calls)
