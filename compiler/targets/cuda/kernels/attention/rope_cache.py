"""Norm and rope of q and k, and the write of k and v to the paged cache, in one pass over the merged q, k, v."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
import triton
import triton.language as tl

from ...call import ROUNDING, Case, Kernel, KernelCall, Operand, Suite, next_power, product, total
from ..fp8 import MINIMUM_SM, saturated
from .reference import PAGE
from .rope_reference import BLOCKS, EPSILON, TABLES, turned

BLOCK = 8
"""Heads per program."""


@triton.jit
def as_stored(numbers, cache):
    """Numbers in the cache's dtype; in a cache of u8, E4M3 bits as `saturated` gives them."""
    return saturated(numbers) if cache.dtype.element_ty == tl.uint8 else numbers.to(cache.dtype.element_ty)


@triton.jit
def normed(
    a, b, first, second, head, q_norm, k_norm, HEADS: tl.constexpr, HEAD_DIM: tl.constexpr, EPSILON: tl.constexpr
):
    """Pairs [heads, HALF] of elements `first` and `second` of a head, divided by the head's root mean square, times the
    weights of heads of q and, if it is given, of those of k."""
    factor = 1.0 / tl.sqrt((tl.sum(a * a, axis=1) + tl.sum(b * b, axis=1)) / HEAD_DIM + EPSILON)
    of_q = (second < HEAD_DIM) & (head < HEADS)
    weight_a = tl.load(q_norm + first, of_q, 0.0)
    weight_b = tl.load(q_norm + second, of_q, 0.0)
    if k_norm is not None:
        of_k = (second < HEAD_DIM) & (head >= HEADS)
        weight_a += tl.load(k_norm + first, of_k, 0.0)
        weight_b += tl.load(k_norm + second, of_k, 0.0)
    return a * factor[:, None] * weight_a.to(tl.float32), b * factor[:, None] * weight_b.to(tl.float32)


@triton.jit
def rope_cache_kernel(
    qkv,
    positions,
    slot_mapping,
    cos,
    sin,
    q_cos,
    q_sin,
    q_norm,
    k_norm,
    q,
    key,
    value,
    HEADS: tl.constexpr,
    KV_HEADS: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    ROTARY: tl.constexpr,
    INTERLEAVED: tl.constexpr,
    AFTER: tl.constexpr,
    EPSILON: tl.constexpr,
    HALF: tl.constexpr,
    BLOCK: tl.constexpr,
    PAGE: tl.constexpr,
):
    """qkv [tokens, (HEADS + 2 * KV_HEADS) * HEAD_DIM], positions and slot_mapping i32 [tokens], cos and sin f32
    [C, ROTARY / 2] -> q [tokens, HEADS * HEAD_DIM], and key and value [blocks, KV_HEADS, PAGE, HEAD_DIM] at the
    token's slot; slot -1 writes nothing.

    The first ROTARY elements of a head are rotated. Without cos and sin none are, and without key there are no heads of
    k and v. q_cos, q_sin: tables of q, if it has its own (Ministral 3). q_norm, k_norm [HEAD_DIM] or None: weights of
    an RMSNorm of each head of q and of k before rope (Qwen 3, Gemma 3), or with AFTER behind it (Hunyuan). Caches of u8
    hold E4M3. Grid: tokens, blocks of heads; the heads of q come first, then of k, then of v.
    """
    token = tl.program_id(0).to(tl.int64)
    head = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)[:, None]
    half: tl.constexpr = HEAD_DIM // 2
    pairs: tl.constexpr = ROTARY // 2
    index = tl.arange(0, HALF)[None, :]
    first = 2 * index if INTERLEAVED else index
    second = first + 1 if INTERLEAVED else index + half
    if ROTARY < HEAD_DIM and not INTERLEAVED:  # the others are pairs too, which stay as they are
        first = tl.where(index < pairs, index, index + pairs)
        second = tl.where(index < pairs, index + pairs, index + half)
    inside = (index < half) & (head < HEADS + 2 * KV_HEADS)
    source = qkv + token * ((HEADS + 2 * KV_HEADS) * HEAD_DIM) + head * HEAD_DIM
    a = tl.load(source + first, inside, 0.0).to(tl.float32)
    b = tl.load(source + second, inside, 0.0).to(tl.float32)
    turned_a = a
    turned_b = b
    if q_norm is not None and not AFTER:
        turned_a, turned_b = normed(a, b, first, second, head, q_norm, k_norm, HEADS, HEAD_DIM, EPSILON)
    if cos is not None:
        row = tl.load(positions + token).to(tl.int64) * pairs + index
        c = tl.load(cos + row, index < pairs, 1.0 if ROTARY < HEAD_DIM else 0.0)
        s = tl.load(sin + row, index < pairs, 0.0)
        if q_cos is not None:
            own, of_q = row + 0 * head, (index < pairs) & (head < HEADS)
            c = tl.load(q_cos + own, of_q, c + 0.0 * head)
            s = tl.load(q_sin + own, of_q, s + 0.0 * head)
        straight = turned_a
        turned_a = straight * c - turned_b * s
        turned_b = turned_b * c + straight * s
    if q_norm is not None and AFTER:
        turned_a, turned_b = normed(turned_a, turned_b, first, second, head, q_norm, k_norm, HEADS, HEAD_DIM, EPSILON)
    is_query = inside & (head < HEADS)
    target = q + (token * HEADS + head) * HEAD_DIM
    tl.store(target + first, turned_a.to(q.dtype.element_ty), is_query)
    tl.store(target + second, turned_b.to(q.dtype.element_ty), is_query)
    if key is not None:
        slot = tl.load(slot_mapping + token).to(tl.int64)
        at = (slot // PAGE) * (KV_HEADS * PAGE * HEAD_DIM) + (slot % PAGE) * HEAD_DIM
        heads = tl.where(slot >= 0, HEADS + 2 * KV_HEADS, 0)
        is_key = inside & (head >= HEADS) & (head < tl.minimum(heads, HEADS + KV_HEADS))
        target = key + at + (head - HEADS) * (PAGE * HEAD_DIM)
        tl.store(target + first, as_stored(turned_a, key), is_key)
        tl.store(target + second, as_stored(turned_b, key), is_key)
        is_value = inside & (head >= HEADS + KV_HEADS) & (head < heads)
        target = value + at + (head - HEADS - KV_HEADS) * (PAGE * HEAD_DIM)
        tl.store(target + first, as_stored(a, value), is_value)
        tl.store(target + second, as_stored(b, value), is_value)


KERNEL = Kernel("rope_cache", rope_cache_kernel)
FP8 = Kernel("rope_cache_fp8", rope_cache_kernel, MINIMUM_SM)


@dataclass(frozen=True)
class Turn:
    """What is done to the heads of q and k."""

    cos: Operand | None = None
    """f32 [C, rotated elements / 2], as all tables; None: nothing is rotated."""
    sin: Operand | None = None
    q_cos: Operand | None = None
    """Tables of q alone."""
    q_sin: Operand | None = None
    interleaved: bool = False
    q_norm: Operand | None = None
    """Weights [head_dim] of the RMSNorm of each head of q, and of k."""
    k_norm: Operand | None = None
    after: bool = False
    """The norm comes after rope."""
    epsilon: float = 0.0


def rope_cache(
    qkv: Operand,
    positions: Operand,
    slot_mapping: Operand,
    q: Operand,
    key: Operand | None,
    value: Operand | None,
    turn: Turn,
    *,
    heads: int,
    kv_heads: int,
    head_dim: int,
) -> KernelCall:
    """Rotate q and k of every token by its position, and write k and v to the cache, as E4M3 if the cache is u8.

    Without key and value, qkv holds queries alone, and kv_heads is 0.
    """
    every = {
        "qkv": qkv,
        "positions": None if turn.cos is None else positions,
        "slot_mapping": None if key is None else slot_mapping,
        **{name: getattr(turn, name) for name in ("cos", "sin", "q_cos", "q_sin", "q_norm", "k_norm")},
        "q": q,
        "key": key,
        "value": value,
    }
    given = {name: one for name, one in every.items() if one is not None}
    rotated = 0 if turn.cos is None else 2 * int(turn.cos.shape[1])
    cached = 0 if key is None else 2 * kv_heads * head_dim * key.item_bytes
    return KernelCall(
        FP8 if key is not None and key.dtype == "u8" else KERNEL,
        given,
        {
            "HEADS": heads,
            "KV_HEADS": kv_heads,
            "HEAD_DIM": head_dim,
            "ROTARY": rotated or head_dim,
            "INTERLEAVED": turn.interleaved,
            "AFTER": turn.after,
            **{name: None for name in every if name not in given},
            "EPSILON": turn.epsilon,
            "HALF": next_power(head_dim // 2),
            "BLOCK": BLOCK,
            "PAGE": PAGE,
        },
        ("tokens", -(-(heads + 2 * kv_heads) // BLOCK)),
        writes=("q",) if key is None else ("q", "key", "value"),
        bytes=total(qkv.bytes, q.bytes, product("tokens", cached + 4 * rotated)),
        operations=product("tokens", 3 * (heads + kv_heads) * head_dim),
        warps=4,
    )


def _cases() -> Iterator[Case]:
    random = torch.Generator().manual_seed(4)
    for heads, kv_heads, size, stored, has in (
        (4, 2, 64, "bf16", ()),
        (3, 1, 80, "bf16", ("interleaved",)),
        (2, 2, 96, "bf16", ()),
        (4, 2, 64, "bf16", ("interleaved", "normed")),
        (3, 1, 80, "u8", ("normed",)),
        (3, 1, 80, "bf16", ("partial", "normed", "apart")),
        (4, 2, 64, "bf16", ("partial", "interleaved")),
        (2, 2, 96, "bf16", ("normed", "after")),
        (3, 1, 80, "bf16", ("unturned",)),
        (2, 1, 64, "bf16", ("unturned", "normed")),
        (9, 0, 64, "bf16", ("normed", "partial")),
        (4, 2, 64, "u8", ("partial", "interleaved")),
        (3, 1, 80, "u8", ("normed", "after", "apart")),
        (2, 1, 64, "u8", ("unturned",)),
    ):
        yield _case(random, heads, kv_heads, size, stored, has)


def _case(random: torch.Generator, heads: int, kv_heads: int, size: int, stored: str, has: tuple[str, ...]) -> Case:
    """`has` is that of `turned`."""
    inputs, expected = turned(random, heads, kv_heads, size, stored, has)
    tables = {name: Operand(name, "f32", tuple(inputs[name].shape)) for name in TABLES if name in inputs}
    given = _operands(heads, kv_heads, size, "bf16", stored, BLOCKS)
    turn = Turn(**tables, interleaved="interleaved" in has, after="after" in has, epsilon=EPSILON)
    call = rope_cache(
        *(given if kv_heads else (*given[:4], None, None)), turn, heads=heads, kv_heads=kv_heads, head_dim=size
    )
    return Case(
        "-".join((f"{heads}-{kv_heads}x{size}-{stored}", *has)),
        call,
        {name: one for name, one in inputs.items() if name in call.arguments},
        {"tokens": len(inputs["qkv"])},
        {name: expected[name] for name in call.writes},
        ROUNDING["bf16"],
        2.0**-10 if stored == "u8" else 0.0,  # a device rounds the rotation differently: maybe to the neighbour
    )


def _operands(
    heads: int, kv_heads: int, size: int, act: str, stored: str, blocks: int | str
) -> tuple[Operand, Operand, Operand, Operand, Operand, Operand]:
    cache = (blocks, kv_heads, PAGE, size)
    return (
        Operand("qkv", act, ("tokens", (heads + 2 * kv_heads) * size)),
        Operand("positions", "i32", ("tokens",)),
        Operand("slot_mapping", "i32", ("tokens",)),
        Operand("q", act, ("tokens", heads * size)),
        Operand("key", stored, cache),
        Operand("value", stored, cache),
    )


def _calls(sm: int) -> Iterator[KernelCall]:
    for stored in ("bf16", "u8") if sm >= FP8.minimum_sm else ("bf16",):
        operands = _operands(32, 8, 128, "bf16", stored, 128)
        tables = Turn(Operand("cos", "f32", (8192, 64)), Operand("sin", "f32", (8192, 64)))
        yield rope_cache(*operands, tables, heads=32, kv_heads=8, head_dim=128)


SUITE = Suite((KERNEL, FP8), _cases, _calls)
