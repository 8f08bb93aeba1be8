"""Norm and rope of q and k, and the write of k and v to the paged cache, in one pass over the merged q, k, v."""

from __future__ import annotations

from collections.abc import Iterator

import torch
import triton
import triton.language as tl

from ...call import ROUNDING, Case, Kernel, KernelCall, Operand, Suite, next_power, product, total
from ..fp8 import MINIMUM_SM, saturated

PAGE = 64
BLOCK = 8
"""Heads per program."""


@triton.jit
def as_stored(numbers, cache):
    """Numbers in the cache's dtype; in a cache of u8, E4M3 bits as `saturated` gives them."""
    return saturated(numbers) if cache.dtype.element_ty == tl.uint8 else numbers.to(cache.dtype.element_ty)


@triton.jit
def rope_cache_kernel(
    qkv,
    positions,
    slot_mapping,
    cos,
    sin,
    q_norm,
    k_norm,
    q,
    key,
    value,
    HEADS: tl.constexpr,
    KV_HEADS: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    INTERLEAVED: tl.constexpr,
    EPSILON: tl.constexpr,
    HALF: tl.constexpr,
    BLOCK: tl.constexpr,
    PAGE: tl.constexpr,
):
    """qkv [tokens, (HEADS + 2 * KV_HEADS) * HEAD_DIM], positions and slot_mapping i32 [tokens], cos and sin f32
    [C, HEAD_DIM / 2] -> q [tokens, HEADS * HEAD_DIM], and key and value [blocks, KV_HEADS, PAGE, HEAD_DIM] at the
    token's slot; slot -1 writes nothing.

    q_norm, k_norm [HEAD_DIM] or None: weights of an RMSNorm of each head of q and of k before rope (Qwen 3, Gemma 3).
    Caches of u8 hold E4M3. Grid: tokens, blocks of heads; the heads of q come first, then of k, then of v.
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
    raw_a = a
    raw_b = b
    if q_norm is not None:
        factor = 1.0 / tl.sqrt((tl.sum(a * a, axis=1) + tl.sum(b * b, axis=1)) / HEAD_DIM + EPSILON)
        of_q = (index < half) & (head < HEADS)
        of_k = (index < half) & (head >= HEADS)
        weight_a = tl.load(q_norm + first, of_q, 0.0) + tl.load(k_norm + first, of_k, 0.0)
        weight_b = tl.load(q_norm + second, of_q, 0.0) + tl.load(k_norm + second, of_k, 0.0)
        a = a * factor[:, None] * weight_a.to(tl.float32)
        b = b * factor[:, None] * weight_b.to(tl.float32)
    row = tl.load(positions + token).to(tl.int64) * half + index
    c = tl.load(cos + row, index < half, 0.0)
    s = tl.load(sin + row, index < half, 0.0)
    turned_a = a * c - b * s
    turned_b = b * c + a * s
    is_query = inside & (head < HEADS)
    target = q + (token * HEADS + head) * HEAD_DIM
    tl.store(target + first, turned_a.to(q.dtype.element_ty), is_query)
    tl.store(target + second, turned_b.to(q.dtype.element_ty), is_query)
    slot = tl.load(slot_mapping + token).to(tl.int64)
    at = (slot // PAGE) * (KV_HEADS * PAGE * HEAD_DIM) + (slot % PAGE) * HEAD_DIM
    heads = tl.where(slot >= 0, HEADS + 2 * KV_HEADS, 0)
    is_key = inside & (head >= HEADS) & (head < tl.minimum(heads, HEADS + KV_HEADS))
    target = key + at + (head - HEADS) * (PAGE * HEAD_DIM)
    tl.store(target + first, as_stored(turned_a, key), is_key)
    tl.store(target + second, as_stored(turned_b, key), is_key)
    is_value = inside & (head >= HEADS + KV_HEADS) & (head < heads)
    target = value + at + (head - HEADS - KV_HEADS) * (PAGE * HEAD_DIM)
    tl.store(target + first, as_stored(raw_a, value), is_value)
    tl.store(target + second, as_stored(raw_b, value), is_value)


KERNEL = Kernel("rope_cache", rope_cache_kernel)
FP8 = Kernel("rope_cache_fp8", rope_cache_kernel, MINIMUM_SM)


def rope_cache(
    qkv: Operand,
    positions: Operand,
    slot_mapping: Operand,
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
    norms: tuple[Operand, Operand] | None = None,
    epsilon: float = 0.0,
) -> KernelCall:
    """Rotate q and k of every token by its position, and write k and v to the cache, as E4M3 if the cache is u8.

    `norms` are the weights [head_dim] of the RMSNorm of each head of q and of k before rope, `epsilon` is theirs.
    """
    cached = 2 * kv_heads * head_dim * key.item_bytes
    named = dict(zip(("q_norm", "k_norm"), norms or (), strict=False))
    return KernelCall(
        FP8 if key.dtype == "u8" else KERNEL,
        {
            **named,
            "qkv": qkv,
            "positions": positions,
            "slot_mapping": slot_mapping,
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
            **dict.fromkeys({"q_norm", "k_norm"} - {*named}),
            "EPSILON": epsilon,
            "HALF": next_power(head_dim // 2),
            "BLOCK": BLOCK,
            "PAGE": PAGE,
        },
        ("tokens", -(-(heads + 2 * kv_heads) // BLOCK)),
        writes=("q", "key", "value"),
        bytes=total(qkv.bytes, q.bytes, product("tokens", cached + 4 * head_dim)),
        operations=product("tokens", 3 * (heads + kv_heads) * head_dim),
        warps=4,
    )


def _cases() -> Iterator[Case]:
    random = torch.Generator().manual_seed(4)
    for heads, kv_heads, size, interleaved, normed, stored in (
        (4, 2, 64, False, False, "bf16"),
        (3, 1, 80, True, False, "bf16"),
        (2, 2, 96, False, False, "bf16"),
        (4, 2, 64, True, True, "bf16"),
        (3, 1, 80, False, True, "u8"),
    ):
        tokens, blocks = 5, 3
        qkv = torch.randn(tokens, (heads + 2 * kv_heads) * size, generator=random).to(torch.bfloat16)
        positions = torch.tensor([0, 3, 70, 7, 1], dtype=torch.int32)
        slot_mapping = torch.tensor([2 * 64 + 5, 0, 63, -1, 64 + 1], dtype=torch.int32)
        angle = torch.rand(80, size // 2, generator=random) * 6
        tensors = {
            "qkv": qkv,
            "positions": positions,
            "slot_mapping": slot_mapping,
            "cos": angle.cos(),
            "sin": angle.sin(),
        }
        kind = torch.bfloat16 if stored == "bf16" else torch.float8_e4m3fn
        cache = torch.zeros(blocks, kv_heads, PAGE, size)
        split = qkv.float().reshape(tokens, -1, size)
        turned = split[:, : heads + kv_heads]
        extra = {}
        if normed:
            norms = {name: torch.randn(size, generator=random) for name in ("q_norm", "k_norm")}
            weights = torch.cat([norms["q_norm"].expand(heads, -1), norms["k_norm"].expand(kv_heads, -1)])
            turned = torch.nn.functional.rms_norm(turned, (size,), eps=1e-6) * weights
            tensors |= norms
            extra = {"norms": tuple(Operand(name, "f32", (size,)) for name in norms), "epsilon": 1e-6}
        turned = _rotate(turned, angle[positions.long()], interleaved)
        expected = {"key": cache, "value": cache.clone()}
        for token, slot in enumerate(slot_mapping.tolist()):
            if slot >= 0:
                expected["key"][slot // PAGE, :, slot % PAGE] = turned[token, heads:]
                expected["value"][slot // PAGE, :, slot % PAGE] = split[token, heads + kv_heads :]
        call = rope_cache(
            *_operands(heads, kv_heads, size, "bf16", stored, blocks, 80),
            heads=heads,
            kv_heads=kv_heads,
            head_dim=size,
            interleaved=interleaved,
            **extra,
        )
        zeros = torch.zeros_like(cache).to(kind)
        if stored == "u8":  # bits are compared: neighbours in E4M3 differ by 1 of up to 254
            expected = {name: tensor.to(kind).view(torch.uint8) for name, tensor in expected.items()}
            zeros = zeros.view(torch.uint8)
        yield Case(
            f"{heads}-{kv_heads}x{size}-{stored}{'-interleaved' * interleaved}{'-normed' * normed}",
            call,
            {**tensors, "key": zeros, "value": zeros.clone()},
            {"tokens": tokens},
            {**expected, "q": turned[:, :heads].reshape(tokens, -1)},
            ROUNDING["bf16"],
            2.0**-10 if stored == "u8" else 0.0,  # a device rounds the rotation differently: maybe to the neighbour
        )


def _operands(
    heads: int, kv_heads: int, size: int, act: str, stored: str, blocks: int | str, context: int
) -> tuple[Operand, Operand, Operand, Operand, Operand, Operand, Operand, Operand]:
    cache = (blocks, kv_heads, PAGE, size)
    table = (context, size // 2)
    return (
        Operand("qkv", act, ("tokens", (heads + 2 * kv_heads) * size)),
        Operand("positions", "i32", ("tokens",)),
        Operand("slot_mapping", "i32", ("tokens",)),
        Operand("cos", "f32", table),
        Operand("sin", "f32", table),
        Operand("q", act, ("tokens", heads * size)),
        Operand("key", stored, cache),
        Operand("value", stored, cache),
    )


def _rotate(x: torch.Tensor, angle: torch.Tensor, interleaved: bool) -> torch.Tensor:
    """x [T, heads, D] turned by angle [T, D / 2]."""
    pairs = x.unflatten(-1, (-1, 2)) if interleaved else x.unflatten(-1, (2, -1)).transpose(-1, -2)
    turned = torch.view_as_real(
        torch.view_as_complex(pairs.contiguous()) * torch.polar(torch.ones_like(angle), angle)[:, None]
    )
    return turned.flatten(-2) if interleaved else turned.transpose(-1, -2).flatten(-2)


def _calls(sm: int) -> Iterator[KernelCall]:
    for stored in ("bf16", "u8") if sm >= FP8.minimum_sm else ("bf16",):
        operands = _operands(32, 8, 128, "bf16", stored, 128, 8192)
        yield rope_cache(*operands, heads=32, kv_heads=8, head_dim=128)


SUITE = Suite((KERNEL, FP8), _cases, _calls)
