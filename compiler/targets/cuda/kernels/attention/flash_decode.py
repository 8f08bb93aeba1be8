"""Attention of one new token per sequence: the cache is read once, by enough programs to fill the chip.

Split-KV after Dao et al., "Flash-Decoding" (2023): splits of a sequence store their output and log-sum-exp, and the
last program of a sequence and kv head, found by an integer counter, combines them.
"""
# Triton's type stubs type reductions as if they might be tuples, and reject its loops; branches are of constants.
# pyright: reportOperatorIssue=false, reportGeneralTypeIssues=false, reportPossiblyUnboundVariable=false

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import fields
from typing import Unpack

import torch
import triton
import triton.language as tl

from ...call import ROUNDING, Case, Kernel, KernelCall, Operand, Suite, next_power, product, total
from ..fp8 import MINIMUM_SM
from ..linear.dequantize import stored_column
from ..linear.parts.common import comes_last, dot
from ..linear.tiles import COUNTERS
from .flash_parts import Parts, parts_of, splits_for, weigh_parts
from .flash_prefill import LARGE, Heads, bound, capped
from .pairs import cached_pairs, query_pairs
from .reference import PAGE, AttentionOptions, in_order, paged

ROWS = 16
"""Fewest rows of a tensor-core product; a smaller group of heads is padded."""


@triton.jit
def attention_decode_kernel(
    q,
    key,
    value,
    block_tables,
    seq_lens,
    sinks,
    out,
    partial,
    lse,
    counters,
    HEADS: tl.constexpr,
    KV_HEADS: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    SCALE: tl.constexpr,
    WINDOW: tl.constexpr,
    SOFTCAP: tl.constexpr,
    MAX_BLOCKS: tl.constexpr,
    SPLITS: tl.constexpr,
    COUNT: tl.constexpr,
    ROWS: tl.constexpr,
    DIM: tl.constexpr,
    PAGE: tl.constexpr,
    ORDER: tl.constexpr,
    EMULATE: tl.constexpr,
):
    """q [sequences, HEADS * HEAD_DIM], caches [blocks, KV_HEADS, PAGE, HEAD_DIM], block_tables i32
    [sequences, MAX_BLOCKS], seq_lens i32 [sequences] -> out as q.

    Grid: sequences, kv heads, splits. More than one split needs partial f32 [sequences, HEADS, SPLITS, HEAD_DIM], lse
    f32 [sequences, HEADS, SPLITS] (base 2) and counters i32 [sequences, KV_HEADS], zeros.
    """
    sequence = tl.program_id(0)
    kv_head = tl.program_id(1)
    split = tl.program_id(2)
    group: tl.constexpr = HEADS // KV_HEADS
    length = tl.load(seq_lens + sequence)
    member = tl.arange(0, ROWS)
    dim = tl.arange(0, DIM)
    head = kv_head * group + member
    mask = (member[:, None] < group) & (dim[None, :] < HEAD_DIM)
    first_of = q + (sequence * HEADS + head[:, None]) * HEAD_DIM
    FP8: tl.constexpr = key.dtype.element_ty == tl.uint8
    scale = SCALE
    if FP8:
        queries, odd_queries, lowered = query_pairs(first_of, member[:, None] < group, HEAD_DIM, DIM)
        scale *= lowered
    else:
        queries = tl.load(first_of + dim[None, :], mask, 0.0)
    acc = tl.zeros([ROWS, DIM // 2 if FP8 else DIM], tl.float32)
    odd_acc = acc
    highest = tl.full([ROWS], -1e30, tl.float32)
    norm = tl.zeros([ROWS], tl.float32)
    if SPLITS == 1 and sinks is not None:
        highest = tl.load(sinks + head, member < group, 0.0).to(tl.float32) * 1.4426950408889634
        norm = tl.full([ROWS], 1.0, tl.float32)
    oldest = 0
    if WINDOW > 0:
        oldest = tl.maximum(length - WINDOW, 0)
    begin = oldest // PAGE
    pages = (length + PAGE - 1) // PAGE - begin
    share = (pages + SPLITS - 1) // SPLITS
    first = begin + split * share
    for index in range(first, tl.minimum(first + share, begin + pages)):
        other = index * PAGE + tl.arange(0, PAGE)
        seen = (other < length) & (other >= oldest)
        slab = tl.load(block_tables + sequence * MAX_BLOCKS + index).to(tl.int64) * KV_HEADS + kv_head
        scores = tl.zeros([ROWS, PAGE], tl.float32)
        if FP8:
            keys, odd_keys = cached_pairs(key, slab, seen, HEAD_DIM, DIM, PAGE, EMULATE)
            values, odd_values = cached_pairs(value, slab, seen, HEAD_DIM, DIM, PAGE, EMULATE)
            scores = dot(odd_queries, tl.trans(odd_keys), scores, EMULATE)
        else:
            offset = slab * (PAGE * HEAD_DIM) + tl.arange(0, PAGE)[:, None] * HEAD_DIM + dim[None, :]
            inside = seen[:, None] & (dim[None, :] < HEAD_DIM)
            keys = tl.load(key + offset, inside, 0.0)
            values = tl.load(value + offset, inside, 0.0)
        scores = capped(dot(queries, tl.trans(keys), scores, EMULATE), scale, SOFTCAP)
        scores = tl.where(seen[None, :], scores, -1e30)
        above = tl.maximum(highest, tl.max(scores, axis=1))
        weights = tl.where(seen[None, :], tl.exp2(scores - above[:, None]), 0.0)
        fade = tl.exp2(highest - above)
        norm = norm * fade + tl.sum(weights, axis=1)
        weights = weights.to(values.dtype)
        acc = dot(weights, values, acc * fade[:, None], EMULATE)
        if FP8:
            odd_acc = dot(weights, odd_values, odd_acc * fade[:, None], EMULATE)
        highest = above
    if FP8:
        acc = tl.reshape(tl.join(acc, odd_acc), [ROWS, DIM])
    acc = acc / tl.where(norm > 0.0, norm, 1.0)[:, None]
    row = sequence * HEADS + head
    if SPLITS == 1:
        column = stored_column(head[:, None] * HEAD_DIM + dim[None, :], ORDER)
        target = out + sequence.to(tl.int64) * (HEADS * HEAD_DIM) + column
        tl.store(target, acc.to(out.dtype.element_ty), mask)
    else:
        place = (row * SPLITS + split).to(tl.int64)
        tl.store(partial + place[:, None] * HEAD_DIM + dim[None, :], acc, mask)
        sums = tl.where(norm > 0.0, highest + tl.log2(tl.where(norm > 0.0, norm, 1.0)), -1e30)
        tl.store(lse + place, sums, member < group)
        if comes_last(counters + sequence * KV_HEADS + kv_head, SPLITS):
            for one in tl.static_range(group):
                weigh_parts(
                    *(partial, lse, sinks, out, sequence, kv_head * group + one),
                    *(HEADS, HEAD_DIM, SPLITS, COUNT, DIM, ORDER),
                )


KERNEL = Kernel("attention_decode", attention_decode_kernel)
FP8 = Kernel("attention_decode_fp8", attention_decode_kernel, MINIMUM_SM)


def attention_decode(
    q: Operand,
    key: Operand,
    value: Operand,
    block_tables: Operand,
    seq_lens: Operand,
    out: Operand,
    *,
    splits: int,
    parts: Parts | None = None,
    **heads: Unpack[Heads],
) -> KernelCall:
    """Attention of one token per sequence; its own key and value are in the cache already. A length of 0 gives zeros.

    More than one split needs `parts`.
    """
    assert (splits == 1) == (parts is None)
    room = {field.name: getattr(parts, field.name) if parts else None for field in fields(Parts)}
    moved = [q.bytes, out.bytes] + ([parts.partial.bytes, parts.lse.bytes] * 2 if parts else [])
    members, kv_heads = heads["heads"] // heads["kv_heads"], heads["kv_heads"]
    operands = {"q": q, "key": key, "value": value, "block_tables": block_tables, "seq_lens": seq_lens, "out": out}
    arguments, constants = bound({**operands, **room}, heads)
    return KernelCall(
        FP8 if key.dtype == "u8" else KERNEL,
        arguments,
        {**constants, "SPLITS": splits, "COUNT": next_power(splits), "ROWS": max(next_power(members), ROWS)},
        ("sequences", kv_heads, splits),
        writes=("out", *(room if parts else ())),
        bytes=total(*moved),
        operations=product("sequences", 2 * heads["heads"] * heads["head_dim"] * splits) if parts else 0,
        warps=4 if heads["head_dim"] <= LARGE else 8,
        stages=1 if heads["head_dim"] > LARGE else 5 if key.dtype == "u8" else 3,
    )


def _cases() -> Iterator[Case]:
    for options, seq_lens, splits in (
        (AttentionOptions(4, 2, 64), (1, 65, 0, 130), 1),
        (AttentionOptions(4, 2, 64), (1, 65, 0, 130), 4),
        (AttentionOptions(4, 4, 80), (63, 64), 2),
        (AttentionOptions(8, 1, 96), (200,), 4),
        (AttentionOptions(2, 1, 128, window=20), (100, 5), 1),
        (AttentionOptions(2, 1, 128, window=70), (300, 5, 64, 133, 134, 135), 3),
        (AttentionOptions(3, 1, 256, softcap=30.0), (66,), 2),
        (AttentionOptions(2, 2, 16, sinks=True), (40, 129), 1),
        (AttentionOptions(2, 1, 16, sinks=True), (40, 0, 129), 2),
        (AttentionOptions(8, 1, 128, cache="u8"), (70, 1), 1),
        (AttentionOptions(3, 3, 96, cache="u8"), (130,), 2),
        (AttentionOptions(4, 2, 64, window=20, cache="u8"), (100, 5), 1),
        (AttentionOptions(4, 2, 16, cache="u8", size=2.0**60), (100, 5), 2),
        (AttentionOptions(3, 1, 80, softcap=30.0, cache="u8", size=2.0**-60), (67,), 1),
        (AttentionOptions(2, 1, 16, sinks=True, cache="u8"), (40, 129), 2),
        (AttentionOptions(2, 1, 64, ordered=True), (40, 129), 1),
        (AttentionOptions(4, 2, 64, ordered=True, cache="u8"), (40, 129), 2),
    ):
        made = paged(options, seq_lens, (1,) * len(seq_lens), seed=6)
        q, key, value, block_tables, lens, out = made.operands("q", "key", "value", "block_tables", "seq_lens", "out")
        counters = Operand("counters", "i32", ("sequences", options.kv_heads))
        call = attention_decode(
            *(q, key, value, block_tables, lens, out),
            heads=options.heads,
            kv_heads=options.kv_heads,
            head_dim=options.head_dim,
            scale=options.scale,
            splits=splits,
            parts=parts_of(Operand.of, counters, options.heads, options.head_dim, splits),
            window=options.window,
            softcap=options.softcap,
            order=options.order,
            sinks=made.operands("sinks")[0] if options.sinks else None,
        )
        names = {operand.name for operand in call.arguments.values() if isinstance(operand, Operand)}
        inputs = {name: tensor for name, tensor in made.tensors.items() if name in names}
        expected = {"out": in_order(made.expected) if options.ordered else made.expected}
        if splits > 1:
            expected["counters"] = inputs["counters"] = torch.zeros(len(seq_lens), options.kv_heads, dtype=torch.int32)
        sizes = {"tokens": len(seq_lens), "sequences": len(seq_lens)}
        yield Case(f"{options.name}-{splits}", call, inputs, sizes, expected, 2 * ROUNDING["bf16"])


def _calls(sm: int) -> Iterator[KernelCall]:
    cache = ("blocks", 8, PAGE, 128)
    shapes = ((1, "bf16"), (32, "bf16"), (1, "u8"), (32, "u8"))
    for sequences, stored in shapes if sm >= FP8.minimum_sm else shapes[:2]:
        splits = splits_for(sequences, 8, 128, sm)
        yield attention_decode(
            Operand("q", "bf16", ("tokens", 4096)),
            Operand("key", stored, cache),
            Operand("value", stored, cache),
            Operand("block_tables", "i32", ("sequences", 128)),
            Operand("seq_lens", "i32", ("sequences",)),
            Operand("out", "bf16", ("tokens", 4096)),
            heads=32,
            kv_heads=8,
            head_dim=128,
            scale=128**-0.5,
            splits=splits,
            parts=parts_of(Operand.of, Operand("counters", "i32", (COUNTERS,)), 32, 128, splits),
        )


SUITE = Suite((KERNEL, FP8), _cases, _calls)
