"""Attention of one new token per sequence: the cache is read once, by as many programs as fill the chip.

Split-KV after Dao et al., "Flash-Decoding" (2023): parts of a sequence leave their output and log-sum-exp, and a second
kernel weighs them.
"""
# Triton's library is typed as if reductions might be tuples.
# pyright: reportOperatorIssue=false

from __future__ import annotations

from collections.abc import Iterator

import torch
import triton
import triton.language as tl

from ..kernel import ROUNDING, Call, Case, Kernel, Operand, Suite, next_power, product, total
from .attention_prefill import capped, load_cached
from .attention_reference import PAGE, Options, paged
from .linear import dot

ROWS = 16
"""Least rows of a tensor-core product: a smaller group of heads is padded to them."""
PROCESSORS = {80: 108, 89: 128, 90: 132, 100: 148, 120: 170}
"""Streaming multiprocessors of the largest chip of a compute capability."""
MOST_SPLITS = 32
LEAST_PAGES = 2
"""Pages that a split should have, or its start and end cost more than it saves."""


@triton.jit
def attention_decode_kernel(
    q,
    key,
    value,
    tables,
    lengths,
    sinks,
    out,
    lse,
    HEADS: tl.constexpr,
    KV_HEADS: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    SCALE: tl.constexpr,
    WINDOW: tl.constexpr,
    SOFTCAP: tl.constexpr,
    MAX_BLOCKS: tl.constexpr,
    SPLITS: tl.constexpr,
    ROWS: tl.constexpr,
    DIM: tl.constexpr,
    PAGE: tl.constexpr,
    EMULATE: tl.constexpr,
):
    """q [sequences, HEADS * HEAD_DIM], caches [blocks, KV_HEADS, PAGE, HEAD_DIM], tables i32 [sequences, MAX_BLOCKS],
    lengths i32 [sequences] -> out [sequences, HEADS, SPLITS, HEAD_DIM] and lse f32 [sequences, HEADS, SPLITS] (log 2).

    Program (sequence, kv head, split). SPLITS 1: out is the attention itself, sinks included, and there is no lse.
    """
    sequence = tl.program_id(0)
    kv_head = tl.program_id(1)
    split = tl.program_id(2)
    group: tl.constexpr = HEADS // KV_HEADS
    length = tl.load(lengths + sequence)
    member = tl.arange(0, ROWS)
    dim = tl.arange(0, DIM)
    head = kv_head * group + member
    mask = (member[:, None] < group) & (dim[None, :] < HEAD_DIM)
    queries = tl.load(q + (sequence * HEADS + head[:, None]) * HEAD_DIM + dim[None, :], mask, 0.0)
    highest = tl.full([ROWS], -1e30, tl.float32)
    norm = tl.zeros([ROWS], tl.float32)
    if SPLITS == 1 and sinks is not None:
        highest = tl.load(sinks + head, member < group, 0.0) * 1.4426950408889634
        norm = tl.full([ROWS], 1.0, tl.float32)
    acc = tl.zeros([ROWS, DIM], tl.float32)
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
        slab = tl.load(tables + sequence * MAX_BLOCKS + index).to(tl.int64) * KV_HEADS + kv_head
        offset = slab * (PAGE * HEAD_DIM) + tl.arange(0, PAGE)[:, None] * HEAD_DIM + dim[None, :]
        inside = seen[:, None] & (dim[None, :] < HEAD_DIM)
        keys = load_cached(key, offset, inside, q.dtype.element_ty)
        values = load_cached(value, offset, inside, q.dtype.element_ty)
        scores = capped(dot(queries, tl.trans(keys), tl.zeros([ROWS, PAGE], tl.float32), EMULATE), SCALE, SOFTCAP)
        scores = tl.where(seen[None, :], scores, -1e30)
        above = tl.maximum(highest, tl.max(scores, axis=1))
        weights = tl.where(seen[None, :], tl.exp2(scores - above[:, None]), 0.0)
        fade = tl.exp2(highest - above)
        norm = norm * fade + tl.sum(weights, axis=1)
        acc = dot(weights.to(values.dtype), values, acc * fade[:, None], EMULATE)
        highest = above
    acc = acc / tl.where(norm > 0.0, norm, 1.0)[:, None]
    row = (sequence * HEADS + head) * SPLITS + split
    tl.store(out + row[:, None].to(tl.int64) * HEAD_DIM + dim[None, :], acc.to(out.dtype.element_ty), mask)
    if SPLITS > 1:
        sums = tl.where(norm > 0.0, highest + tl.log2(tl.where(norm > 0.0, norm, 1.0)), -1e30)
        tl.store(lse + row, sums, member < group)


@triton.jit
def combine_kernel(
    partial,
    lse,
    sinks,
    out,
    HEADS: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    SPLITS: tl.constexpr,
    COUNT: tl.constexpr,
    DIM: tl.constexpr,
):
    """partial f32 [sequences, HEADS, SPLITS, HEAD_DIM], lse f32 [sequences, HEADS, SPLITS] -> out [sequences, HEADS *
    HEAD_DIM]; a sequence without positions gives zeros."""
    head = tl.program_id(1)
    row = tl.program_id(0) * HEADS + head
    split = tl.arange(0, COUNT)
    sums = tl.load(lse + row * SPLITS + split, split < SPLITS, -1e30)
    sink = -1e30
    if sinks is not None:
        sink = tl.load(sinks + head) * 1.4426950408889634
    highest = tl.maximum(tl.max(sums, axis=0), sink)
    weights = tl.where(sums > -1e29, tl.exp2(sums - highest), 0.0)
    norm = tl.sum(weights, axis=0)
    if sinks is not None:
        norm += tl.exp2(sink - highest)
    dim = tl.arange(0, DIM)
    inside = (split[:, None] < SPLITS) & (dim[None, :] < HEAD_DIM)
    at = (row.to(tl.int64) * SPLITS + split[:, None]) * HEAD_DIM + dim[None, :]
    parts = tl.load(partial + at, inside, 0.0)
    mean = tl.sum(parts * weights[:, None], axis=0) / tl.where(norm > 0.0, norm, 1.0)
    tl.store(out + row.to(tl.int64) * HEAD_DIM + dim, mean.to(out.dtype.element_ty), dim < HEAD_DIM)


DECODE = Kernel("attention_decode", attention_decode_kernel)
COMBINE = Kernel("attention_combine", combine_kernel)


def splits_for(sequences: int, kv_heads: int, max_blocks: int, sm: int) -> int:
    """Parts of a sequence: a power of two, so many that all processors have a program, if there are pages enough."""
    wanted = PROCESSORS[sm] // (sequences * kv_heads)
    most = min(MOST_SPLITS, max(max_blocks // LEAST_PAGES, 1))
    return max(min(1 << max(wanted, 1).bit_length() - 1, 1 << most.bit_length() - 1), 1)


def attention_decode(
    q: Operand,
    key: Operand,
    value: Operand,
    tables: Operand,
    lengths: Operand,
    out: Operand,
    *,
    heads: int,
    kv_heads: int,
    head_dim: int,
    scale: float,
    splits: int,
    partial: Operand | None = None,
    lse: Operand | None = None,
    window: int = 0,
    softcap: float = 0.0,
    sinks: Operand | None = None,
) -> Call:
    """Attention of one token per sequence, its own key and value being in the cache; a length of 0 gives zeros.

    splits > 1 needs partial f32 [sequences, heads, splits, head_dim] and lse f32 [sequences, heads, splits], and
    `attention_combine` then writes `out` (and knows the sinks). window, softcap, sinks: see `attention_prefill`.
    """
    width = tables.shape[1]
    assert isinstance(width, int)
    target = out if splits == 1 else partial
    assert target is not None and (splits == 1) == (lse is None)
    optional = {"sinks": sinks if splits == 1 else None, "lse": lse}
    given = {name: operand for name, operand in optional.items() if operand is not None}
    return Call(
        DECODE,
        {"q": q, "key": key, "value": value, "tables": tables, "lengths": lengths, "out": target, **given},
        {
            **{name: None for name, operand in optional.items() if operand is None},
            "HEADS": heads,
            "KV_HEADS": kv_heads,
            "HEAD_DIM": head_dim,
            "SCALE": scale,
            "WINDOW": window,
            "SOFTCAP": softcap,
            "MAX_BLOCKS": width,
            "SPLITS": splits,
            "ROWS": max(next_power(heads // kv_heads), ROWS),
            "DIM": max(next_power(head_dim), 16),
            "PAGE": PAGE,
        },
        ("sequences", kv_heads, splits),
        writes=("out", "lse") if splits > 1 else ("out",),
        bytes=total(q.bytes, target.bytes),
        operations=0,
        warps=4,
        stages=3,
    )


def attention_combine(
    partial: Operand,
    lse: Operand,
    out: Operand,
    *,
    heads: int,
    head_dim: int,
    splits: int,
    sinks: Operand | None = None,
) -> Call:
    """The parts of `attention_decode` as one: weighed by their sums, in fixed order."""
    return Call(
        COMBINE,
        {"partial": partial, "lse": lse, "out": out, **({"sinks": sinks} if sinks is not None else {})},
        {
            **({"sinks": None} if sinks is None else {}),
            "HEADS": heads,
            "HEAD_DIM": head_dim,
            "SPLITS": splits,
            "COUNT": next_power(splits),
            "DIM": next_power(head_dim),
        },
        ("sequences", heads),
        writes=("out",),
        bytes=total(partial.bytes, lse.bytes, out.bytes),
        operations=product("sequences", 2 * heads * head_dim * splits),
        warps=2,
    )


def _cases() -> Iterator[Case]:
    for options, lengths, splits in (
        (Options(4, 2, 64), (1, 65, 0, 130), 1),
        (Options(4, 4, 80), (63, 64), 2),
        (Options(8, 1, 96), (200,), 4),
        (Options(2, 1, 128, window=20), (100, 5), 1),
        (Options(3, 1, 256, softcap=30.0), (66,), 2),
        (Options(2, 2, 16, sinks=True), (40, 129), 1),
        (Options(8, 1, 128, cache="u8"), (70, 1), 1),
        (Options(3, 3, 96, cache="u8"), (130,), 2),
    ):
        made = paged(options, lengths, (1,) * len(lengths), seed=6)
        q, key, value, tables, lens, out = made.operands("q", "key", "value", "tables", "lengths", "out")
        shape = ("sequences", options.heads, splits)
        call = attention_decode(
            *(q, key, value, tables, lens, out),
            heads=options.heads,
            kv_heads=options.kv_heads,
            head_dim=options.head_dim,
            scale=options.scale,
            splits=splits,
            partial=Operand("partial", "f32", (*shape, options.head_dim)) if splits > 1 else None,
            lse=Operand("lse", "f32", shape) if splits > 1 else None,
            window=options.window,
            softcap=options.softcap,
            sinks=made.operands("sinks")[0] if options.sinks else None,
        )
        names = {operand.name for operand in call.arguments.values() if isinstance(operand, Operand)}
        inputs = {name: tensor for name, tensor in made.tensors.items() if name in names}
        sizes = {"tokens": len(lengths), "sequences": len(lengths)}
        expected = {"out": made.expected} if splits == 1 else _parts(options, made.tensors, lengths, splits)
        yield Case(f"{options.name}-{splits}", call, inputs, sizes, expected, 2 * ROUNDING["bf16"])
    yield _combine_case()


def _parts(
    options: Options, tensors: dict[str, torch.Tensor], lengths: tuple[int, ...], splits: int
) -> dict[str, torch.Tensor]:
    """Every part of every sequence by definition."""
    out = torch.zeros(len(lengths), options.heads, splits, options.head_dim)
    sums = torch.full((len(lengths), options.heads, splits), -1e30)
    group = options.heads // options.kv_heads
    for sequence, length in enumerate(lengths):
        q = tensors["q"][sequence].float().reshape(options.heads, -1)
        pages = -(-length // PAGE)
        share = -(-pages // splits)
        for split in range(-(-pages // share)):
            blocks = tensors["tables"][sequence, split * share : min((split + 1) * share, pages)].long()
            count = min(length - split * share * PAGE, share * PAGE)
            key, value = (
                wide[blocks].transpose(0, 1).flatten(1, 2)[:, :count].repeat_interleave(group, 0)
                for wide in (_wide(tensors["key"]), _wide(tensors["value"]))
            )
            scores = torch.einsum("ad,ald->al", q, key) * options.scale
            if options.softcap:
                scores = options.softcap * (scores / options.softcap).tanh()
            sums[sequence, :, split] = scores.logsumexp(-1) / torch.tensor(2.0).log()
            out[sequence, :, split] = torch.einsum("al,ald->ad", scores.softmax(-1), value)
    return {"partial": out, "lse": sums}


def _wide(cache: torch.Tensor) -> torch.Tensor:
    return (cache.view(torch.float8_e4m3fn) if cache.dtype == torch.uint8 else cache).float()


def _combine_case() -> Case:
    random = torch.Generator().manual_seed(7)
    sequences, heads, splits, size = 3, 2, 3, 80
    partial = torch.randn(sequences, heads, splits, size, generator=random)
    lse = torch.randn(sequences, heads, splits, generator=random) * 4
    lse[1, :, 2] = -1e30
    lse[2] = -1e30
    sinks = torch.randn(heads, generator=random)
    weights = torch.cat([lse * torch.tensor(2.0).log(), sinks[None, :, None].expand(sequences, -1, -1)], -1).softmax(-1)
    expected = torch.einsum("bas,basd->bad", weights[..., :splits], partial).reshape(sequences, -1)
    expected[2] = 0.0
    shape = ("sequences", heads, splits)
    call = attention_combine(
        Operand("partial", "f32", (*shape, size)),
        Operand("lse", "f32", shape),
        Operand("out", "bf16", ("sequences", heads * size)),
        heads=heads,
        head_dim=size,
        splits=splits,
        sinks=Operand("sinks", "f32", (heads,)),
    )
    inputs = {"partial": partial, "lse": lse, "sinks": sinks}
    return Case("combine", call, inputs, {"sequences": sequences}, {"out": expected}, ROUNDING["bf16"])


def _calls(sm: int) -> Iterator[Call]:
    cache = ("blocks", 8, PAGE, 128)
    for sequences, stored in ((1, "bf16"), (32, "bf16"), (1, "u8"), (32, "u8")):
        splits = splits_for(sequences, 8, 128, sm)
        shape = ("sequences", 32, splits)
        q, out = Operand("q", "bf16", ("tokens", 4096)), Operand("out", "bf16", ("tokens", 4096))
        partial = Operand("partial", "f32", (*shape, 128)) if splits > 1 else None
        lse = Operand("lse", "f32", shape) if splits > 1 else None
        yield attention_decode(
            q,
            Operand("key", stored, cache),
            Operand("value", stored, cache),
            Operand("tables", "i32", ("sequences", 128)),
            Operand("lengths", "i32", ("sequences",)),
            out,
            heads=32,
            kv_heads=8,
            head_dim=128,
            scale=128**-0.5,
            splits=splits,
            partial=partial,
            lse=lse,
        )
        if partial is not None and lse is not None:
            yield attention_combine(partial, lse, out, heads=32, head_dim=128, splits=splits)


SUITE = Suite((DECODE, COMBINE), _cases, _calls)
