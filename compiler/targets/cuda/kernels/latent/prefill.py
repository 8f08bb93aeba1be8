"""Latent attention of many new tokens, of prompts and decoding sequences, over the cached rows as they are.

A block is queries of one sequence and some of their heads, so a row is read once for all of them.
"""

from __future__ import annotations

from collections.abc import Iterator

import triton
import triton.language as tl

from ...call import ROUNDING, Case, Kernel, KernelCall, Operand, Suite, product, total
from ..fp8 import MINIMUM_SM
from .over_rows import load_queries, mix_rows
from .reference import LatentOptions, paged_rows
from .shape import MOST, PAGE, LatentShape, block_for, head_blocks


@triton.jit
def latent_prefill_kernel(
    query,
    rows,
    block_tables,
    query_start_loc,
    seq_lens,
    mixed,
    sequences,
    HEADS: tl.constexpr,
    RANK: tl.constexpr,
    ROPE: tl.constexpr,
    SCALE: tl.constexpr,
    MAX_BLOCKS: tl.constexpr,
    QUERIES: tl.constexpr,
    MEMBERS: tl.constexpr,
    DIM: tl.constexpr,
    TURN: tl.constexpr,
    TILE: tl.constexpr,
    PAGE: tl.constexpr,
    EMULATE: tl.constexpr,
):
    """query [tokens, HEADS, RANK + ROPE], rows [blocks, PAGE, RANK + ROPE], block_tables i32 [sequences, MAX_BLOCKS],
    query_start_loc i32 [sequences + 1], seq_lens i32 [sequences] -> mixed [tokens, HEADS, RANK].

    Grid: blocks of QUERIES tokens, blocks of MEMBERS heads; the blocks of sequence i start at
    query_start_loc[i] // QUERIES + i.
    """
    low = 0
    high = sequences
    while low < high:
        middle = (low + high) // 2
        if tl.load(query_start_loc + middle) // QUERIES + middle <= tl.program_id(0):
            low = middle + 1
        else:
            high = middle
    sequence = low - 1
    begin = tl.load(query_start_loc + sequence)
    count = tl.load(query_start_loc + sequence + 1) - begin
    first = (tl.program_id(0) - (begin // QUERIES + sequence)) * QUERIES
    if first < count:
        M: tl.constexpr = QUERIES * MEMBERS
        length = tl.load(seq_lens + sequence)
        member = tl.arange(0, M)
        token = tl.zeros([M], tl.int32) if QUERIES == 1 else member // MEMBERS
        head = tl.program_id(1) * MEMBERS + member % MEMBERS
        wanted = (first + token < count) & (head < HEADS)
        at = token * HEADS + head
        start = (begin + first).to(tl.int64) * HEADS
        latent, turned = load_queries(query + start * (RANK + ROPE), at, wanted, RANK, ROPE, DIM, TURN)
        old = length - count + first
        acc, norm, _ = mix_rows(
            *(latent, turned, rows, block_tables + sequence * MAX_BLOCKS),
            *(old + token, 0, tl.minimum(length, old + QUERIES)),
            *(SCALE, RANK, ROPE, M, DIM, TURN, TILE, PAGE, QUERIES > 1, EMULATE),
        )
        acc = acc * (1.0 / tl.where(norm > 0.0, norm, 1.0))[:, None]
        dim = tl.arange(0, DIM)[None, :]
        target = mixed + start * RANK + at[:, None] * RANK + dim
        tl.store(target, acc.to(mixed.dtype.element_ty), wanted[:, None] & (dim < RANK))


KERNEL = Kernel("latent_prefill", latent_prefill_kernel)
FP8 = Kernel("latent_prefill_fp8", latent_prefill_kernel, MINIMUM_SM)


def latent_prefill(
    query: Operand,
    rows: Operand,
    block_tables: Operand,
    query_start_loc: Operand,
    seq_lens: Operand,
    mixed: Operand,
    shape: LatentShape,
    *,
    scale: float,
    sm: int,
) -> KernelCall:
    """Causal attention of the step's tokens, which are the last of each sequence's `seq_lens` positions.

    The output of tokens beyond query_start_loc[sequences] is not written.
    """
    block = block_for(shape, sm, MOST)
    members = block.members
    return KernelCall(
        FP8 if rows.dtype == "u8" else KERNEL,
        {
            "query": query,
            "rows": rows,
            "block_tables": block_tables,
            "query_start_loc": query_start_loc,
            "seq_lens": seq_lens,
            "mixed": mixed,
            "sequences": "sequences",
        },
        {
            "HEADS": shape.heads,
            "RANK": shape.rank,
            "ROPE": shape.rope,
            "SCALE": scale,
            "MAX_BLOCKS": block_tables.shape[1],  # type: ignore[dict-item]
            "QUERIES": block.rows // members,
            "MEMBERS": members,
            "DIM": shape.dim,
            "TURN": shape.turn,
            "TILE": block.tile,
            "PAGE": PAGE,
        },
        (f"tokens // {block.rows // members} + sequences", head_blocks(shape, block)),
        writes=("mixed",),
        bytes=total(query.bytes, mixed.bytes),
        operations=product("tokens", shape.heads * (shape.rank + shape.row), PAGE),
        warps=block.warps,
        stages=block.stages,
    )


def _cases() -> Iterator[Case]:
    for options, seq_lens, new_tokens, sm in (
        (LatentOptions(LatentShape(4, 16, 8, 16, 32)), (1, 65, 130), (1, 33, 130), 90),
        (LatentOptions(LatentShape(20, 16, 16, 16, 48)), (63, 64, 0), (2, 1, 0), 89),
        (LatentOptions(LatentShape(70, 16, 8, 16, 24)), (70,), (9,), 90),
        (LatentOptions(LatentShape(16, 128, 64, 128, 512)), (70, 40), (5, 1), 90),
        (LatentOptions(LatentShape(4, 16, 8, 16, 32), cache="u8"), (70, 3), (7, 3), 89),
        (LatentOptions(LatentShape(20, 16, 64, 16, 64), cache="u8"), (65,), (65,), 90),
    ):
        made = paged_rows(options, seq_lens, new_tokens, seed=5)
        tensors, shape = made.tensors, options.shape
        call = latent_prefill(
            *_operands(options, tensors["rows"].shape[0], tensors["block_tables"].shape[1]),
            shape,
            scale=options.scale,
            sm=sm,
        )
        sizes = {"tokens": sum(new_tokens), "sequences": len(seq_lens)}
        yield Case(f"{options.name}-sm_{sm}", call, tensors, sizes, {"mixed": made.mixed}, 2 * ROUNDING["bf16"])


def _operands(
    options: LatentOptions, blocks: int | str, max_blocks: int
) -> tuple[Operand, Operand, Operand, Operand, Operand, Operand]:
    shape = options.shape
    return (
        Operand("query", "bf16", ("tokens", shape.heads, shape.row)),
        Operand("rows", options.cache, (blocks, 1, PAGE, shape.row)),
        Operand("block_tables", "i32", ("sequences", max_blocks)),
        Operand("query_start_loc", "i32", ("sequences + 1",)),
        Operand("seq_lens", "i32", ("sequences",)),
        Operand("mixed", "bf16", ("tokens", shape.heads, shape.rank)),
    )


def _calls(sm: int) -> Iterator[KernelCall]:
    stored = ("bf16", "u8") if sm >= FP8.minimum_sm else ("bf16",)
    for heads, cache in ((heads, cache) for heads in (128, 16) for cache in stored):
        options = LatentOptions(LatentShape(heads, 128, 64, 128, 512), cache)
        yield latent_prefill(*_operands(options, "blocks", 128), options.shape, scale=options.scale, sm=sm)


SUITE = Suite((KERNEL, FP8), _cases, _calls)
