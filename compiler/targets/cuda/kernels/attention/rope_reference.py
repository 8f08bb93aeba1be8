"""Norm and rope of heads in float32 torch, and random numbers for them: the reference of `rope_cache.py`."""

from __future__ import annotations

from collections.abc import Collection

import torch

from .reference import PAGE

TOKENS, BLOCKS, POSITIONS, EPSILON = 5, 3, 80, 1e-6
TABLES = ("cos", "sin", "q_cos", "q_sin", "q_norm", "k_norm")


def turned(
    random: torch.Generator, heads: int, kv_heads: int, size: int, stored: str, has: Collection[str]
) -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor]]:
    """(inputs, what is written) of `rope_cache` for a cache in dtype `stored`.

    `has`: interleaved; partial, half of a head is rotated; unturned, nothing is; apart, q has tables of its own;
    normed; after, the norm comes behind rope.
    """
    rotated = 0 if "unturned" in has else size // 4 * 2 if "partial" in has else size
    qkv = torch.randn(TOKENS, (heads + 2 * kv_heads) * size, generator=random).to(torch.bfloat16)
    positions = torch.tensor([0, 3, 70, 7, 1], dtype=torch.int32)
    slot_mapping = torch.tensor([2 * PAGE + 5, 0, PAGE - 1, -1, PAGE + 1], dtype=torch.int32)
    angle = torch.rand(POSITIONS, rotated // 2, generator=random) * 6
    own = torch.rand(POSITIONS, rotated // 2, generator=random) * 6 if "apart" in has else angle
    inputs = {"qkv": qkv, "positions": positions, "slot_mapping": slot_mapping}
    inputs |= {"cos": angle.cos(), "sin": angle.sin()} if rotated else {}
    inputs |= {"q_cos": own.cos(), "q_sin": own.sin()} if "apart" in has else {}
    norms = ("q_norm", "k_norm")[: 2 if kv_heads else 1] if "normed" in has else ()
    inputs |= {name: torch.randn(size, generator=random) for name in norms}

    def scaled(x: torch.Tensor, weight: str) -> torch.Tensor:
        return torch.nn.functional.rms_norm(x, (size,), eps=EPSILON) * inputs[weight] if norms else x

    def made(x: torch.Tensor, weight: str, angle: torch.Tensor) -> torch.Tensor:
        x = x if "after" in has else scaled(x, weight)
        if rotated:
            part = _rotate(x[..., :rotated], angle[positions.long()], "interleaved" in has)
            x = torch.cat([part, x[..., rotated:]], dim=-1)
        return scaled(x, weight) if "after" in has else x

    split = qkv.float().reshape(TOKENS, -1, size)
    q, k, v = split.split([heads, kv_heads, kv_heads], dim=1)
    expected = {"q": made(q, "q_norm", own).reshape(TOKENS, -1)}
    kind = torch.bfloat16 if stored == "bf16" else torch.float8_e4m3fn
    for name, x in (("key", made(k, "k_norm", angle)), ("value", v)) if kv_heads else ():
        cache = torch.zeros(BLOCKS, kv_heads, PAGE, size)
        inputs[name] = cache.to(kind)
        for token, slot in enumerate(slot_mapping.tolist()):
            if slot >= 0:
                cache[slot // PAGE, :, slot % PAGE] = x[token]
        expected[name] = cache
        if stored == "u8":  # bits are compared: neighbours in E4M3 differ by 1 of up to 254
            inputs[name], expected[name] = (one.to(kind).view(torch.uint8) for one in (inputs[name], cache))
    return inputs, expected


def _rotate(x: torch.Tensor, angle: torch.Tensor, interleaved: bool) -> torch.Tensor:
    """x [T, heads, D] turned by angle [T, D / 2]."""
    pairs = x.unflatten(-1, (-1, 2)) if interleaved else x.unflatten(-1, (2, -1)).transpose(-1, -2)
    turned = torch.view_as_real(
        torch.view_as_complex(pairs.contiguous()) * torch.polar(torch.ones_like(angle), angle)[:, None]
    )
    return turned.flatten(-2) if interleaved else turned.transpose(-1, -2).flatten(-2)
