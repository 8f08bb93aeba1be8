"""Rope of q and k and the paged cache's write in one pass over the merged product: no unrotated k or v is stored."""

from __future__ import annotations

from collections.abc import Iterator

import torch
import triton
import triton.language as tl

from ..kernel import ROUNDING, Call, Case, Kernel, Operand, Suite, next_power, product, total

PAGE = 64
BLOCK = 8
"""Heads of a program."""


@triton.jit
def rope_cache_kernel(
    qkv,
    positions,
    slots,
    cos,
    sin,
    q,
    key,
    value,
    HEADS: tl.constexpr,
    KV_HEADS: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    INTERLEAVED: tl.constexpr,
    HALF: tl.constexpr,
    BLOCK: tl.constexpr,
    PAGE: tl.constexpr,
):
    """qkv [tokens, (HEADS + 2 KV_HEADS) * HEAD_DIM], positions and slots i32 [tokens], cos, sin f32 [C, HEAD_DIM / 2]
    -> q [tokens, HEADS * HEAD_DIM], and each slot of key, value [blocks, KV_HEADS, PAGE, HEAD_DIM]; slot -1: none.

    Program (token, block of heads); heads are those of q, then of k, then of v.
    """
    token = tl.program_id(0).to(tl.int64)
    head = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)[:, None]
    half: tl.constexpr = HEAD_DIM // 2
    index = tl.arange(0, HALF)[None, :]
    first = 2 * index if INTERLEAVED else index
    second = first + 1 if INTERLEAVED else index + half
    inside = (index < half) & (head < HEADS + 2 * KV_HEADS)
    source = qkv + token * ((HEADS + 2 * KV_HEADS) * HEAD_DIM) + head * HEAD_DIM
    a = tl.load(source + first, inside, 0.0).to(tl.float32)
    b = tl.load(source + second, inside, 0.0).to(tl.float32)
    row = tl.load(positions + token).to(tl.int64) * half + index
    c = tl.load(cos + row, index < half, 0.0)
    s = tl.load(sin + row, index < half, 0.0)
    turned_a = (a * c - b * s).to(q.dtype.element_ty)
    turned_b = (b * c + a * s).to(q.dtype.element_ty)
    is_query = inside & (head < HEADS)
    target = q + (token * HEADS + head) * HEAD_DIM
    tl.store(target + first, turned_a, is_query)
    tl.store(target + second, turned_b, is_query)
    slot = tl.load(slots + token).to(tl.int64)
    at = (slot // PAGE) * (KV_HEADS * PAGE * HEAD_DIM) + (slot % PAGE) * HEAD_DIM
    heads = tl.where(slot >= 0, HEADS + 2 * KV_HEADS, 0)
    is_key = inside & (head >= HEADS) & (head < tl.minimum(heads, HEADS + KV_HEADS))
    target = key + at + (head - HEADS) * (PAGE * HEAD_DIM)
    tl.store(target + first, turned_a, is_key)
    tl.store(target + second, turned_b, is_key)
    is_value = inside & (head >= HEADS + KV_HEADS) & (head < heads)
    target = value + at + (head - HEADS - KV_HEADS) * (PAGE * HEAD_DIM)
    tl.store(target + first, a.to(q.dtype.element_ty), is_value)
    tl.store(target + second, b.to(q.dtype.element_ty), is_value)


KERNEL = Kernel("rope_cache", rope_cache_kernel)


def rope_cache(
    qkv: Operand,
    positions: Operand,
    slots: Operand,
    cos: Operand,
    sin: Operand,
    q: Operand,
    key: Operand,
    value: Operand,
    *,
    heads: int,
    kv_heads: int,
    head_dim: int,
    interleaved: bool = False,
) -> Call:
    """Rotate q and k of every token by its position, write k and v where the cache keeps them."""
    return Call(
        KERNEL,
        {
            "qkv": qkv,
            "positions": positions,
            "slots": slots,
            "cos": cos,
            "sin": sin,
            "q": q,
            "key": key,
            "value": value,
        },
        {
            "HEADS": heads,
            "KV_HEADS": kv_heads,
            "HEAD_DIM": head_dim,
            "INTERLEAVED": interleaved,
            "HALF": next_power(head_dim // 2),
            "BLOCK": BLOCK,
            "PAGE": PAGE,
        },
        ("tokens", -(-(heads + 2 * kv_heads) // BLOCK)),
        writes=("q", "key", "value"),
        bytes=total(qkv.bytes, qkv.bytes, product("tokens", 4 * head_dim)),
        operations=product("tokens", 3 * (heads + kv_heads) * head_dim),
        warps=2,
    )


def _cases() -> Iterator[Case]:
    random = torch.Generator().manual_seed(4)
    for heads, kv_heads, size, interleaved in ((4, 2, 64, False), (3, 1, 80, True), (2, 2, 96, False)):
        tokens, blocks = 5, 3
        qkv = torch.randn(tokens, (heads + 2 * kv_heads) * size, generator=random).to(torch.bfloat16)
        positions = torch.tensor([0, 3, 70, 7, 1], dtype=torch.int32)
        slots = torch.tensor([2 * 64 + 5, 0, 63, -1, 64 + 1], dtype=torch.int32)
        angle = torch.rand(80, size // 2, generator=random) * 6
        tensors = {"qkv": qkv, "positions": positions, "slots": slots, "cos": angle.cos(), "sin": angle.sin()}
        cache = torch.zeros(blocks, kv_heads, PAGE, size, dtype=torch.bfloat16)
        split = qkv.float().reshape(tokens, -1, size)
        turned = _rotate(split[:, : heads + kv_heads], angle[positions.long()], interleaved)
        expected = {"key": cache.float(), "value": cache.float().clone()}
        for token, slot in enumerate(slots.tolist()):
            if slot >= 0:
                expected["key"][slot // PAGE, :, slot % PAGE] = turned[token, heads:]
                expected["value"][slot // PAGE, :, slot % PAGE] = split[token, heads + kv_heads :]
        call = rope_cache(
            *_operands(heads, kv_heads, size, "bf16", blocks, 80),
            heads=heads,
            kv_heads=kv_heads,
            head_dim=size,
            interleaved=interleaved,
        )
        yield Case(
            f"{heads}-{kv_heads}x{size}{'-interleaved' if interleaved else ''}",
            call,
            {**tensors, "key": cache, "value": cache.clone()},
            {"tokens": tokens},
            {**expected, "q": turned[:, :heads].reshape(tokens, -1)},
            ROUNDING["bf16"],
        )


def _operands(
    heads: int, kv_heads: int, size: int, act: str, blocks: int | str, context: int
) -> tuple[Operand, Operand, Operand, Operand, Operand, Operand, Operand, Operand]:
    cache = (blocks, kv_heads, PAGE, size)
    table = (context, size // 2)
    return (
        Operand("qkv", act, ("tokens", (heads + 2 * kv_heads) * size)),
        Operand("positions", "i32", ("tokens",)),
        Operand("slots", "i32", ("tokens",)),
        Operand("cos", "f32", table),
        Operand("sin", "f32", table),
        Operand("q", act, ("tokens", heads * size)),
        Operand("key", act, cache),
        Operand("value", act, cache),
    )


def _rotate(x: torch.Tensor, angle: torch.Tensor, interleaved: bool) -> torch.Tensor:
    """x [T, heads, D] turned by angle [T, D / 2]."""
    pairs = x.unflatten(-1, (-1, 2)) if interleaved else x.unflatten(-1, (2, -1)).transpose(-1, -2)
    turned = torch.view_as_real(
        torch.view_as_complex(pairs.contiguous()) * torch.polar(torch.ones_like(angle), angle)[:, None]
    )
    return turned.flatten(-2) if interleaved else turned.transpose(-1, -2).flatten(-2)


def _calls(sm: int) -> Iterator[Call]:
    operands = _operands(32, 8, 128, "bf16", 128, 8192)
    yield rope_cache(*operands, heads=32, kv_heads=8, head_dim=128)


SUITE = Suite((KERNEL,), _cases, _calls)
