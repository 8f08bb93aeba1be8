"""Chooses the kernel calls of a linear: kernel, tile, epilogue, and workspace for parts of K."""

from __future__ import annotations

from collections.abc import Callable

from ...call import KernelCall, Operand
from .common import rows_of, tile_for
from .expand_fp8 import expand_fp8
from .fp8 import linear_fp8
from .large import linear_large
from .native.fits import unlike, wrong
from .native.gemm import linear_gemm
from .native.stream import linear_stream
from .small import linear_small
from .tiles import NATIVE, Tile

SMALL_M = 64
"""Up to this many tokens a linear is memory-bound by its weights and uses `linear_small`."""


def linear(
    x: Operand,
    weights: tuple[Operand, ...],
    y: Operand,
    *,
    format: str,
    max_tokens: int,
    sm: int,
    tile: Callable[[str, int, int], Tile | None],
    make: Callable[..., Operand],
    counters: Callable[[int], Operand],
    scales: Operand | None = None,
    bias: Operand | None = None,
    activation: str | None = None,
) -> list[KernelCall]:
    """x [tokens, K] times weights [N, K] in their format -> y [tokens, N], or [tokens, N / 2] with an activation.

    With scales f32 [tokens], x holds E4M3 codes: the product runs on FP8 tensor cores, and weights of other formats
    are first converted to E4M3. `tile` returns the measured tile of a kind, N and K, if there is one. `make` returns
    a buffer of a name, dtype and shape; `counters` an operand of at least that many i32 zeros.
    """
    n, k = rows_of(y, activation), x.shape[-1]
    assert isinstance(k, int)
    common = {"max_tokens": max_tokens, "sm": sm, "bias": bias}
    if scales is not None:
        before = []
        if format != "fp8":
            expanded = make("weight", "u8", n, k), make("weight_scale", "f32", n)
            before.append(expand_fp8(weights, *expanded, format=format))
            weights = expanded
        chosen = _possible(tile("fp8", n, k), x, weights, "fp8", n, k, "fp8", max_tokens, sm)
        if chosen is not None and chosen.route == NATIVE:
            return [*before, linear_gemm(x, scales, weights, y, tile=chosen, **common)]
        return [*before, linear_fp8(x, scales, weights, y, tile=chosen, **common)]
    kind = "large" if max_tokens > SMALL_M else "small"
    measured = tile(kind, n, k) if weights[0].dtype != "f32" else None
    measured = _possible(measured, x, weights, kind, n, k, format, max_tokens, sm)
    sized = measured or tile_for(kind, weights, n, k, format, max_tokens, sm)
    decoded = {**common, "format": format, "activation": activation, "tile": sized}
    if kind == "large":
        return [linear_large(x, weights, y, **decoded)]
    if sized.route == NATIVE:
        return [linear_stream(x, weights, y, **decoded)]
    room = {}
    if sized.splits > 1:
        blocks = -(-n // sized.block_n) * -(-max_tokens // sized.block_m)
        room = {"workspace": make("partial", "f32", sized.splits, x.shape[0], n), "counters": counters(blocks)}
    return [linear_small(x, weights, y, **room, **decoded)]


def _possible(
    tile: Tile | None,
    x: Operand,
    weights: tuple[Operand, ...],
    kind: str,
    n: int,
    k: int,
    format: str,
    max_tokens: int,
    sm: int,
) -> Tile | None:
    """A measured tile, but one of a native kernel only if the linear can have it."""
    if tile is None or tile.route != NATIVE:
        return tile
    return None if unlike(x, weights) or wrong(kind, n, k, format, max_tokens, tile, sm) else tile
