"""Attention of many new tokens over the paged cache, of prompts and decoding sequences; scores are never stored.

Dao, "FlashAttention-2" (2023). A block is queries of one sequence and all heads that share a kv head.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import NotRequired, TypedDict, Unpack

import triton
import triton.language as tl

from ......quantize.activations import GROUP as GROUPS
from ......runtime.chips import SHARED
from ...call import ROUNDING, Argument, Case, Constant, Kernel, KernelCall, Operand, Suite, next_power, product, total
from ..fp4 import MINIMUM_SM as FP4_SM
from ..fp4 import group_of, store_groups
from ..fp8 import MINIMUM_SM, from_e4m3
from ..linear.dequantize import stored_column
from ..linear.parts.common import dot
from ..quantize_fp4 import narrow
from .reference import PAGE, AttentionOptions, fp4_case, in_order, paged

ROWS = 64
"""Queries x heads of a program."""
LARGE = 256
"""Elements of a head, of which more leave no shared memory for a second stage (Gemma 4 has 512)."""
WARPGROUP_SM = (90, 100)
"""Chips whose tensor cores read operands from shared memory; others keep them in registers and need more threads."""


@triton.jit
def load_cached(cache, offset, inside, ACT: tl.constexpr):
    """Keys or values in ACT, stored in ACT or as E4M3 bits (u8), which ACT represents exactly; 0 outside."""
    if cache.dtype.element_ty == tl.uint8:
        numbers = from_e4m3(tl.load(cache + offset, inside, 0), ACT)
    else:
        numbers = tl.load(cache + offset, inside, 0.0)
    return numbers


@triton.jit
def capped(scores, scale, SOFTCAP: tl.constexpr):
    """Scaled scores in base 2 (times log2 e); with SOFTCAP, SOFTCAP * tanh(score / SOFTCAP) (Gemma 2)."""
    if SOFTCAP > 0.0:
        x = scores * (2.0 * scale / SOFTCAP)
        scores = SOFTCAP * (1.0 - 2.0 / (1.0 + tl.exp(x))) * 1.4426950408889634
    else:
        scores = scores * (scale * 1.4426950408889634)
    return scores


@triton.jit
def attention_prefill_kernel(
    q,
    key,
    value,
    block_tables,
    query_start_loc,
    seq_lens,
    sinks,
    out,
    out_scales,
    sequences,
    HEADS: tl.constexpr,
    KV_HEADS: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    SCALE: tl.constexpr,
    WINDOW: tl.constexpr,
    SOFTCAP: tl.constexpr,
    MAX_BLOCKS: tl.constexpr,
    QUERIES: tl.constexpr,
    MEMBERS: tl.constexpr,
    DIM: tl.constexpr,
    PAGE: tl.constexpr,
    ORDER: tl.constexpr,
    GROUP: tl.constexpr,
    EMULATE: tl.constexpr,
):
    """q [tokens, HEADS * HEAD_DIM], caches [blocks, KV_HEADS, PAGE, HEAD_DIM], block_tables i32
    [sequences, MAX_BLOCKS], query_start_loc i32 [sequences + 1], seq_lens i32 [sequences] -> out as q. With GROUP,
    which divides HEAD_DIM, out u8 [tokens, HEADS * HEAD_DIM / 2] and out_scales u8 are its E2M1 codes.

    Grid: blocks, kv heads. A block is QUERIES tokens of one sequence; the blocks of sequence i start at
    query_start_loc[i] // QUERIES + i, which needs no table.
    """
    block = tl.program_id(0)
    kv_head = tl.program_id(1)
    group: tl.constexpr = HEADS // KV_HEADS
    low = 0
    high = sequences
    while low < high:
        middle = (low + high) // 2
        if tl.load(query_start_loc + middle) // QUERIES + middle <= block:
            low = middle + 1
        else:
            high = middle
    sequence = low - 1
    begin = tl.load(query_start_loc + sequence)
    count = tl.load(query_start_loc + sequence + 1) - begin
    first = (block - (begin // QUERIES + sequence)) * QUERIES
    if first < count:
        length = tl.load(seq_lens + sequence)
        row = tl.arange(0, QUERIES * MEMBERS)
        token = first + row // MEMBERS
        member = row % MEMBERS
        position = length - count + token
        wanted = (token < count) & (member < group)
        dim = tl.arange(0, DIM)
        at = (begin + token).to(tl.int64) * (HEADS * HEAD_DIM) + (kv_head * group + member) * HEAD_DIM
        mask = wanted[:, None] & (dim[None, :] < HEAD_DIM)
        queries = tl.load(q + at[:, None] + dim[None, :], mask, 0.0)
        if sinks is not None:
            highest = tl.load(sinks + kv_head * group + member, wanted, 0.0).to(tl.float32) * 1.4426950408889634
            norm = tl.full([QUERIES * MEMBERS], 1.0, tl.float32)
        else:
            highest = tl.full([QUERIES * MEMBERS], -1e30, tl.float32)
            norm = tl.zeros([QUERIES * MEMBERS], tl.float32)
        acc = tl.zeros([QUERIES * MEMBERS, DIM], tl.float32)
        last = tl.minimum(length, length - count + first + QUERIES)
        page = 0
        if WINDOW > 0:
            page = tl.maximum(length - count + first - WINDOW + 1, 0) // PAGE
        for index in range(page, (last + PAGE - 1) // PAGE):
            other = index * PAGE + tl.arange(0, PAGE)
            stored = other < last
            slab = tl.load(block_tables + sequence * MAX_BLOCKS + index).to(tl.int64) * KV_HEADS + kv_head
            base = slab * (PAGE * HEAD_DIM)
            inside = stored[:, None] & (dim[None, :] < HEAD_DIM)
            offset = base + tl.arange(0, PAGE)[:, None] * HEAD_DIM + dim[None, :]
            keys = load_cached(key, offset, inside, q.dtype.element_ty)
            scores = dot(queries, tl.trans(keys), tl.zeros([QUERIES * MEMBERS, PAGE], tl.float32), EMULATE)
            scores = capped(scores, SCALE, SOFTCAP)
            seen = (other[None, :] <= position[:, None]) & stored[None, :]
            if WINDOW > 0:
                seen = seen & (position[:, None] - other[None, :] < WINDOW)
            scores = tl.where(seen, scores, -1e30)
            above = tl.maximum(highest, tl.max(scores, axis=1))
            weights = tl.where(seen, tl.exp2(scores - above[:, None]), 0.0)
            fade = tl.exp2(highest - above)
            norm = norm * fade + tl.sum(weights, axis=1)
            values = load_cached(value, offset, inside, q.dtype.element_ty)
            acc = dot(weights.to(values.dtype), values, acc * fade[:, None], EMULATE)
            highest = above
        acc = acc / tl.where(norm > 0.0, norm, 1.0)[:, None]
        if GROUP is not None:
            # A head of a token is a row of groups.
            store_groups(acc, out, out_scales, at // HEAD_DIM, wanted, 0, HEAD_DIM, GROUP)
        else:
            column = stored_column((kv_head * group + member)[:, None] * HEAD_DIM + dim[None, :], ORDER)
            target = out + (begin + token).to(tl.int64)[:, None] * (HEADS * HEAD_DIM) + column
            tl.store(target, acc.to(out.dtype.element_ty), mask)


KERNEL = Kernel("attention_prefill", attention_prefill_kernel)
FP8 = Kernel("attention_prefill_fp8", attention_prefill_kernel, MINIMUM_SM)
FP4 = Kernel("attention_prefill_fp4", attention_prefill_kernel, FP4_SM)
"""Its output is quantized; the cache may be E4M3 or not."""


class Heads(TypedDict):
    """The parameters that both attention calls share."""

    heads: int
    kv_heads: int
    head_dim: int
    scale: float
    window: NotRequired[int]
    """Positions a token attends to, itself included; 0: all."""
    softcap: NotRequired[float]
    """0: none."""
    sinks: NotRequired[Operand | None]
    """[heads]: logits that are added to the denominator only."""
    order: NotRequired[int]
    """The order of the result's columns; see `linear/parts/fused.py`."""


def bound(operands: Mapping[str, Operand | None], heads: Heads) -> tuple[dict[str, Argument], dict[str, Constant]]:
    """(arguments, constants) that both attention calls share; operands that are None become constants."""
    every = {**operands, "sinks": heads.get("sinks")}
    tables, key = every["block_tables"], every["key"]
    assert tables is not None and key is not None
    width = tables.shape[1]
    assert isinstance(width, int)
    constants: dict[str, Constant] = {
        **{name: None for name, one in every.items() if one is None},
        "HEADS": heads["heads"],
        "KV_HEADS": heads["kv_heads"],
        "HEAD_DIM": heads["head_dim"],
        "SCALE": heads["scale"],
        "WINDOW": heads.get("window", 0),
        "SOFTCAP": heads.get("softcap", 0.0),
        "MAX_BLOCKS": width,
        "DIM": max(next_power(heads["head_dim"]), 32 if key.dtype == "u8" else 16),
        "PAGE": PAGE,
        "ORDER": heads.get("order", 0),
    }
    return {name: one for name, one in every.items() if one is not None}, constants


def attention_prefill(
    q: Operand,
    key: Operand,
    value: Operand,
    block_tables: Operand,
    query_start_loc: Operand,
    seq_lens: Operand,
    out: Operand,
    *,
    sm: int,
    scales: Operand | None = None,
    **heads: Unpack[Heads],
) -> KernelCall:
    """Causal attention of the step's tokens, which are the last of each sequence's `seq_lens` positions.

    The output of tokens beyond query_start_loc[sequences] is not written. With scales u8 [tokens, width / group], out
    is u8: the codes that `quantize_fp4` would give for the f32 result; a head is whole groups.
    """
    members, size = next_power(heads["heads"] // heads["kv_heads"]), heads["head_dim"]
    queries = max(ROWS // members, 1)
    operands = {
        "q": q,
        "key": key,
        "value": value,
        "block_tables": block_tables,
        "query_start_loc": query_start_loc,
        "seq_lens": seq_lens,
        "out": out,
        "out_scales": scales,
    }
    arguments, constants = bound(operands, heads)
    group = group_of(scales, heads["heads"] * size)
    assert not group or size % group == 0
    return KernelCall(
        FP4 if group else FP8 if key.dtype == "u8" else KERNEL,
        {**arguments, "sequences": "sequences"},
        {**constants, "QUERIES": queries, "MEMBERS": members, "GROUP": group},
        (f"tokens // {queries} + sequences", heads["kv_heads"]),
        writes=("out", "out_scales") if group else ("out",),
        bytes=total(q.bytes, out.bytes, *([scales.bytes] if scales else [])),
        operations=product("tokens", 2 * heads["heads"] * size, PAGE),
        warps=4 if size <= 128 and sm in WARPGROUP_SM else 8,
        stages=2 if size <= 128 or (size <= LARGE and SHARED[sm] > 100 << 10) else 1,
    )


def _cases() -> Iterator[Case]:
    for options, seq_lens, new_tokens in (
        (AttentionOptions(4, 2, 64), (1, 65, 130), (1, 33, 130)),
        (AttentionOptions(4, 4, 80), (63, 64), (2, 1)),
        (AttentionOptions(8, 1, 96), (70,), (9,)),
        (AttentionOptions(2, 1, 128, window=20), (100, 5, 83, 84, 85), (70, 5, 1, 1, 2)),
        (AttentionOptions(3, 1, 256, softcap=30.0), (66,), (17,)),
        (AttentionOptions(2, 2, 16, sinks=True), (40, 129), (40, 3)),
        (AttentionOptions(4, 1, 64, cache="u8"), (70, 3), (7, 3)),
        (AttentionOptions(2, 2, 80, cache="u8"), (65,), (65,)),
        (AttentionOptions(4, 2, 64, window=20, cache="u8"), (100, 85), (70, 2)),
        (AttentionOptions(2, 1, 32, softcap=5.0, sinks=True, cache="u8"), (70, 3), (9, 3)),
        (AttentionOptions(2, 1, 64, ordered=True), (70, 3), (9, 3)),
        (AttentionOptions(4, 2, 64, ordered=True, cache="u8"), (70, 3), (9, 3)),
    ):
        made = paged(options, seq_lens, new_tokens, seed=5)
        operands = made.operands("q", "key", "value", "block_tables", "query_start_loc", "seq_lens", "out")
        call = attention_prefill(
            *operands,  # type: ignore[arg-type]
            heads=options.heads,
            kv_heads=options.kv_heads,
            head_dim=options.head_dim,
            scale=options.scale,
            sm=90 if options.head_dim <= 128 else 89,  # must fit the chip with the least shared memory
            window=options.window,
            softcap=options.softcap,
            order=options.order,
            sinks=made.operands("sinks")[0] if options.sinks else None,
        )
        names = {operand.name for operand in call.arguments.values() if isinstance(operand, Operand)}
        inputs = {name: tensor for name, tensor in made.tensors.items() if name in names}
        sizes = {"tokens": sum(new_tokens), "sequences": len(seq_lens)}
        out = in_order(made.expected) if options.ordered else made.expected
        yield Case(options.name, call, inputs, sizes, {"out": out}, 2 * ROUNDING["bf16"])
    for format in GROUPS:
        yield fp4_case(attention_prefill, format)


def _calls(sm: int) -> Iterator[KernelCall]:
    cache = ("blocks", 8, PAGE, 128)
    out = Operand("out", "bf16", ("tokens", 4096)), None
    forms = [("bf16", *out)] + [("u8", *out)] * (sm >= FP8.minimum_sm)
    forms += [("u8", *narrow(4096, format)) for format in GROUPS] * (sm >= FP4_SM)
    for stored, result, scales in forms:
        yield attention_prefill(
            Operand("q", "bf16", ("tokens", 4096)),
            Operand("key", stored, cache),
            Operand("value", stored, cache),
            Operand("block_tables", "i32", ("sequences", 128)),
            Operand("query_start_loc", "i32", ("sequences + 1",)),
            Operand("seq_lens", "i32", ("sequences",)),
            result,
            scales=scales,
            heads=32,
            kv_heads=8,
            head_dim=128,
            scale=128**-0.5,
            sm=sm,
        )


SUITE = Suite((KERNEL, FP8, FP4), _cases, _calls)
