"""Rope of queries and of the key that all heads share, and the write of normed latents and keys to the paged cache."""

from __future__ import annotations

from collections.abc import Iterator

import torch
import triton
import triton.language as tl

from ...call import ROUNDING, Argument, Case, Kernel, KernelCall, Operand, Suite, next_power, product, total
from ..attention.rope_cache import as_stored
from ..fp8 import MINIMUM_SM
from .reference import EPSILON, LatentOptions, new_rows
from .shape import PAGE, LatentShape

BLOCK = 16
"""Heads per program."""


@triton.jit
def turned_pairs(source, token, positions, cos, sin, inside, ROPE: tl.constexpr, HALF: tl.constexpr, FIRST, SECOND):
    """Elements FIRST and SECOND of rows at pointers `source`, f32, turned by the token's position."""
    pair = tl.arange(0, HALF)[None, :]
    at = tl.load(positions + token).to(tl.int64) * (ROPE // 2) + pair
    c = tl.load(cos + at, pair < ROPE // 2, 0.0)
    s = tl.load(sin + at, pair < ROPE // 2, 0.0)
    a = tl.load(source + FIRST, inside, 0.0).to(tl.float32)
    b = tl.load(source + SECOND, inside, 0.0).to(tl.float32)
    return a * c - b * s, b * c + a * s


@triton.jit
def latent_rows_kernel(
    q,
    x,
    norm,
    positions,
    slot_mapping,
    cos,
    sin,
    factors,
    query,
    rows,
    HEADS: tl.constexpr,
    NOPE: tl.constexpr,
    ROPE: tl.constexpr,
    RANK: tl.constexpr,
    Q_WIDTH: tl.constexpr,
    X_WIDTH: tl.constexpr,
    INTERLEAVED: tl.constexpr,
    EPSILON: tl.constexpr,
    DIM: tl.constexpr,
    HALF: tl.constexpr,
    BLOCK: tl.constexpr,
    PAGE: tl.constexpr,
):
    """q [tokens, Q_WIDTH] has HEADS heads of NOPE + ROPE elements first, x [tokens, X_WIDTH] RANK + ROPE columns last:
    the latent and the shared key; norm [RANK], positions and slot_mapping i32 [tokens], cos and sin f32 [P, ROPE / 2]
    -> query [tokens, HEADS, RANK + ROPE], of which the last ROPE elements of each head are written: those of q, turned,
    times factors f32 [P] of positions, if any; rows [blocks, PAGE, RANK + ROPE] at the token's slot: the latent's RMS
    norm and the turned key; slot -1 writes nothing. Rows of u8 hold E4M3.

    Grid: tokens, 1 + blocks of heads; the first program of a token has its row.
    """
    token = tl.program_id(0).to(tl.int64)
    ROW: tl.constexpr = RANK + ROPE
    pair = tl.arange(0, HALF)[None, :]
    first = 2 * pair if INTERLEAVED else pair
    second = first + 1 if INTERLEAVED else pair + ROPE // 2
    if tl.program_id(1) == 0:
        slot = tl.load(slot_mapping + token).to(tl.int64)
        source = x + token * X_WIDTH + (X_WIDTH - ROW)
        dim = tl.arange(0, DIM)
        latent = tl.load(source + dim, dim < RANK, 0.0).to(tl.float32)
        latent = latent * tl.rsqrt(tl.sum(latent * latent, axis=0) / RANK + EPSILON)
        latent = latent * tl.load(norm + dim, dim < RANK, 0.0).to(tl.float32)
        target = rows + slot * ROW
        tl.store(target + dim, as_stored(latent, rows), dim < tl.where(slot >= 0, RANK, 0))
        inside = pair < ROPE // 2
        a, b = turned_pairs(source + RANK, token, positions, cos, sin, inside, ROPE, HALF, first, second)
        kept = pair < tl.where(slot >= 0, ROPE // 2, 0)
        tl.store(target + RANK + first, as_stored(a, rows), kept)
        tl.store(target + RANK + second, as_stored(b, rows), kept)
    else:
        head = (tl.program_id(1) - 1) * BLOCK + tl.arange(0, BLOCK)[:, None]
        is_query = (head < HEADS) & (pair < ROPE // 2)
        own = q + token * Q_WIDTH + head * (NOPE + ROPE) + NOPE
        first_turned, second_turned = turned_pairs(own, token, positions, cos, sin, is_query, ROPE, HALF, first, second)
        if factors is not None:
            factor = tl.load(factors + tl.load(positions + token)).to(tl.float32)
            first_turned = first_turned * factor
            second_turned = second_turned * factor
        place = query + (token * HEADS + head) * ROW + RANK
        tl.store(place + first, first_turned.to(query.dtype.element_ty), is_query)
        tl.store(place + second, second_turned.to(query.dtype.element_ty), is_query)


KERNEL = Kernel("latent_rows", latent_rows_kernel)
FP8 = Kernel("latent_rows_fp8", latent_rows_kernel, MINIMUM_SM)


def latent_rows(
    q: Operand,
    x: Operand,
    norm: Operand,
    positions: Operand,
    slot_mapping: Operand,
    tables: tuple[Operand, Operand],
    query: Operand,
    rows: Operand,
    shape: LatentShape,
    *,
    interleaved: bool,
    epsilon: float,
    factors: Operand | None = None,
) -> KernelCall:
    """Write the rows of all tokens to the cache, as E4M3 if it is u8, and the turned part of their queries.

    `tables` are cos and sin. What else a query [tokens, A, L+R] has is written by `latent_product`.
    """
    cos, sin = tables
    given: dict[str, Argument] = {"q": q, "x": x, "norm": norm, "positions": positions, "slot_mapping": slot_mapping}
    given |= {"cos": cos, "sin": sin, "query": query, "rows": rows}
    if factors is not None:
        given["factors"] = factors
    turned = 2 * shape.heads * shape.rope * q.item_bytes
    row = shape.row * (x.item_bytes + rows.item_bytes)
    return KernelCall(
        FP8 if rows.dtype == "u8" else KERNEL,
        given,
        {
            "HEADS": shape.heads,
            "NOPE": shape.nope,
            "ROPE": shape.rope,
            "RANK": shape.rank,
            "Q_WIDTH": q.shape[-1],
            "X_WIDTH": x.shape[-1],
            "INTERLEAVED": interleaved,
            "EPSILON": epsilon,
            "DIM": shape.dim,
            "HALF": next_power(shape.rope // 2),
            "BLOCK": BLOCK,
            "PAGE": PAGE,
            **({"factors": None} if factors is None else {}),
        },
        ("tokens", 1 + -(-shape.heads // BLOCK)),
        writes=("query", "rows"),
        bytes=total(product("tokens", turned + row + 4 * shape.rope), norm.bytes),
        operations=product("tokens", 3 * (shape.heads + 1) * shape.rope + 5 * shape.rank),
        warps=4,
    )


_CASES = (
    (LatentOptions(LatentShape(3, 16, 8, 16, 32)), ()),
    (LatentOptions(LatentShape(20, 24, 16, 16, 48)), ("halves", "tempered", "merged")),
    (LatentOptions(LatentShape(4, 16, 64, 16, 512), cache="u8"), ("merged",)),
    (LatentOptions(LatentShape(2, 16, 8, 16, 24), cache="u8"), ("halves", "tempered")),
)


def _cases() -> Iterator[Case]:
    random = torch.Generator().manual_seed(9)
    for options, has in _CASES:
        shape = options.shape
        inputs, expected, sizes = new_rows(random, options, has)
        call = latent_rows(
            *_operands(shape, options.cache, inputs["q"].shape[1], inputs["x"].shape[1], len(inputs["rows"])),
            shape,
            interleaved="halves" not in has,
            epsilon=EPSILON,
            factors=Operand("factors", "f32", tuple(inputs["factors"].shape)) if "tempered" in has else None,
        )
        yield Case(
            "-".join((options.name, *has)),
            call,
            {name: one for name, one in inputs.items() if name in call.arguments},
            sizes,
            expected,
            ROUNDING["bf16"],
            2.0**-10 if options.cache == "u8" else 0.0,  # a device rounds the rotation differently: maybe up, not down
        )


def _operands(
    shape: LatentShape, stored: str, q_width: int, x_width: int, blocks: int | str
) -> tuple[Operand, Operand, Operand, Operand, Operand, tuple[Operand, Operand], Operand, Operand]:
    return (
        Operand("q", "bf16", ("tokens", q_width)),
        Operand("x", "bf16", ("tokens", x_width)),
        Operand("norm", "bf16", (shape.rank,)),
        Operand("positions", "i32", ("tokens",)),
        Operand("slot_mapping", "i32", ("tokens",)),
        (Operand("cos", "f32", (80, shape.rope // 2)), Operand("sin", "f32", (80, shape.rope // 2))),
        Operand("query", "bf16", ("tokens", shape.heads, shape.row)),
        Operand("rows", stored, (blocks, 1, PAGE, shape.row)),
    )


def _calls(sm: int) -> Iterator[KernelCall]:
    for stored in ("bf16", "u8") if sm >= FP8.minimum_sm else ("bf16",):
        shape = LatentShape(128, 128, 64, 128, 512)
        operands = _operands(shape, stored, 128 * 192, 1536 + 576, "blocks")
        yield latent_rows(*operands, shape, interleaved=True, epsilon=EPSILON)


SUITE = Suite((KERNEL, FP8), _cases, _calls)
