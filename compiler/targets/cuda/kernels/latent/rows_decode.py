"""Latent attention of one new token per sequence: a cached row is read once for all heads of a program, as keys and as
values. Splits of a sequence leave their parts to the product with the rows of values, which weighs them.
"""

# Triton's type stubs reject plain numbers as constexprs.
# pyright: reportArgumentType=false

from __future__ import annotations

from collections.abc import Iterator

import triton
import triton.language as tl

from ...call import ROUNDING, Argument, Case, Kernel, KernelCall, Operand, Suite, total
from ..attention.flash_parts import splits_for
from ..fp8 import MINIMUM_SM
from .over_rows import load_queries, mix_rows
from .reference import LatentOptions, paged_rows
from .shape import PAGE, LatentShape, block_for, head_blocks


@triton.jit
def latent_decode_kernel(
    query,
    rows,
    block_tables,
    seq_lens,
    mixed,
    lse,
    HEADS: tl.constexpr,
    RANK: tl.constexpr,
    ROPE: tl.constexpr,
    SCALE: tl.constexpr,
    MAX_BLOCKS: tl.constexpr,
    SPLITS: tl.constexpr,
    MEMBERS: tl.constexpr,
    M: tl.constexpr,
    DIM: tl.constexpr,
    TURN: tl.constexpr,
    TILE: tl.constexpr,
    PAGE: tl.constexpr,
    EMULATE: tl.constexpr,
):
    """query [sequences, HEADS, RANK + ROPE], rows [blocks, PAGE, RANK + ROPE], block_tables i32 [sequences,
    MAX_BLOCKS], seq_lens i32 [sequences] -> mixed [sequences, HEADS, RANK]; with more than one split mixed f32
    [sequences, HEADS, SPLITS, RANK] and lse f32 [sequences, HEADS, SPLITS] (base 2). A length of 0 gives zeros.

    Grid: sequences, blocks of MEMBERS heads, splits.
    """
    sequence = tl.program_id(0)
    split = tl.program_id(2)
    member = tl.arange(0, M)
    head = tl.program_id(1) * MEMBERS + member
    wanted = (member < MEMBERS) & (head < HEADS)
    start = sequence.to(tl.int64) * HEADS
    latent, turned = load_queries(query + start * (RANK + ROPE), head, wanted, RANK, ROPE, DIM, TURN)
    length = tl.load(seq_lens + sequence)
    share = ((length + PAGE - 1) // PAGE + SPLITS - 1) // SPLITS * PAGE
    first = split * share
    acc, norm, highest = mix_rows(
        *(latent, turned, rows, block_tables + sequence * MAX_BLOCKS),
        *(length, first, tl.minimum(first + share, length)),
        *(SCALE, RANK, ROPE, M, DIM, TURN, TILE, PAGE, False, EMULATE),
    )
    divisor = tl.where(norm > 0.0, norm, 1.0)
    acc = acc * (1.0 / divisor)[:, None]
    dim = tl.arange(0, DIM)[None, :]
    place = head
    if SPLITS > 1:
        place = head * SPLITS + split
        tl.store(lse + start * SPLITS + place, tl.where(norm > 0.0, highest + tl.log2(divisor), -1e30), wanted)
    target = mixed + start * SPLITS * RANK + place[:, None] * RANK + dim
    tl.store(target, acc.to(mixed.dtype.element_ty), wanted[:, None] & (dim < RANK))


KERNEL = Kernel("latent_decode", latent_decode_kernel)
FP8 = Kernel("latent_decode_fp8", latent_decode_kernel, MINIMUM_SM)


def decode_splits(shape: LatentShape, sequences: int, max_blocks: int, sm: int) -> int:
    """Splits of a sequence that give every processor a program."""
    return splits_for(sequences, head_blocks(shape, block_for(shape, sm)), max_blocks, sm)


def latent_decode(
    query: Operand,
    rows: Operand,
    block_tables: Operand,
    seq_lens: Operand,
    mixed: Operand,
    shape: LatentShape,
    *,
    scale: float,
    sm: int,
    lse: Operand | None = None,
) -> KernelCall:
    """Attention of one token per sequence, whose own row is in the cache already. The number of splits is that of lse
    f32 [sequences, A, splits] and mixed f32 [sequences, A, splits, L]; without lse mixed is [sequences, A, L]."""
    block = block_for(shape, sm)
    given: dict[str, Argument] = {"query": query, "rows": rows, "block_tables": block_tables, "seq_lens": seq_lens}
    given |= {"mixed": mixed} | ({} if lse is None else {"lse": lse})
    splits = 1 if lse is None else lse.shape[-1]
    return KernelCall(
        FP8 if rows.dtype == "u8" else KERNEL,
        given,
        {
            "HEADS": shape.heads,
            "RANK": shape.rank,
            "ROPE": shape.rope,
            "SCALE": scale,
            "MAX_BLOCKS": block_tables.shape[1],  # type: ignore[dict-item]
            "SPLITS": splits,  # type: ignore[dict-item]
            "MEMBERS": block.members,
            "M": block.rows,
            "DIM": shape.dim,
            "TURN": shape.turn,
            "TILE": block.tile,
            "PAGE": PAGE,
            **({"lse": None} if lse is None else {}),
        },
        ("sequences", head_blocks(shape, block), splits),
        writes=("mixed",) if lse is None else ("mixed", "lse"),
        bytes=total(query.bytes, mixed.bytes, *([] if lse is None else [lse.bytes])),
        operations=0,
        warps=block.warps,
        stages=block.stages,
    )


_V3 = LatentShape(128, 128, 64, 128, 512)
_LITE = LatentShape(16, 128, 64, 128, 512)


def _cases() -> Iterator[Case]:
    for options, seq_lens, splits, sm in (
        (LatentOptions(LatentShape(4, 16, 8, 16, 32)), (1, 65, 0, 130), 1, 90),
        (LatentOptions(LatentShape(4, 16, 8, 16, 32)), (1, 65, 0, 130), 4, 90),
        (LatentOptions(LatentShape(20, 16, 16, 16, 48)), (200, 63), 2, 89),
        (LatentOptions(LatentShape(70, 16, 8, 16, 24)), (64,), 1, 90),
        (LatentOptions(LatentShape(16, 128, 64, 128, 512)), (100,), 2, 90),
        (LatentOptions(LatentShape(4, 16, 8, 16, 32), cache="u8"), (70, 0, 1), 1, 89),
        (LatentOptions(LatentShape(20, 16, 64, 16, 64), cache="u8"), (130,), 2, 90),
    ):
        shape, made = options.shape, paged_rows(options, seq_lens, (1,) * len(seq_lens), seed=6)
        lead, tensors = ("sequences", shape.heads), dict(made.tensors)
        del tensors["query_start_loc"]
        lse = Operand("lse", "f32", (*lead, splits)) if splits > 1 else None
        call = latent_decode(
            *_operands(options, tensors["rows"].shape[0], tensors["block_tables"].shape[1]),
            Operand("mixed", "f32", (*lead, splits, shape.rank))
            if lse
            else Operand("mixed", "bf16", (*lead, shape.rank)),
            shape,
            scale=options.scale,
            sm=sm,
            lse=lse,
        )
        sizes = {"sequences": len(seq_lens), "tokens": len(seq_lens)}
        yield Case(f"{options.name}-{splits}-sm_{sm}", call, tensors, sizes, made.parts(splits), 2 * ROUNDING["bf16"])


def _operands(options: LatentOptions, blocks: int | str, max_blocks: int) -> tuple[Operand, Operand, Operand, Operand]:
    shape = options.shape
    return (
        Operand("query", "bf16", ("tokens", shape.heads, shape.row)),
        Operand("rows", options.cache, (blocks, 1, PAGE, shape.row)),
        Operand("block_tables", "i32", ("sequences", max_blocks)),
        Operand("seq_lens", "i32", ("sequences",)),
    )


def _calls(sm: int) -> Iterator[KernelCall]:
    stored = ("bf16", "u8") if sm >= FP8.minimum_sm else ("bf16",)
    for shape, cache in ((shape, cache) for shape in (_V3, _LITE) for cache in stored):
        options, splits = LatentOptions(shape, cache), decode_splits(shape, 1, 128, sm)
        lead = ("sequences", shape.heads)
        yield latent_decode(
            *_operands(options, "blocks", 128),
            Operand("mixed", "f32", (*lead, splits, shape.rank)),
            shape,
            scale=options.scale,
            sm=sm,
            lse=Operand("lse", "f32", (*lead, splits)),
        )


SUITE = Suite((KERNEL, FP8), _cases, _calls)
