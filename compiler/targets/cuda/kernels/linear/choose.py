"""Chooses the kernel call of a linear: kernel, tile, epilogue, and workspace for parts of K."""

from __future__ import annotations

from collections.abc import Callable

from ...call import KernelCall, Operand
from .fp8 import linear_fp8
from .large import linear_large
from .native.fits import unlike, wrong
from .native.gemm import linear_gemm
from .native.stream import linear_stream
from .parts.common import rows_of, tile_for
from .parts.fused import ALONE, Fused
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
    expanded: Callable[[int, int], tuple[Operand, Operand]],
    counters: Callable[[int], Operand],
    scales: Operand | None = None,
    bias: Operand | None = None,
    activation: str | None = None,
    residual: Operand | None = None,
    fused: Fused = ALONE,
) -> KernelCall:
    """x [tokens, K] times weights [N, K] in their format -> y [tokens, N], or [tokens, N / 2] with an activation.

    With scales f32 [tokens], x holds E4M3 codes: the product runs on FP8 tensor cores, for weights of other formats
    with what `expanded` returns for N and K: their E4M3 codes and scales. FP8 takes neither a residual nor neighbours
    (`Fused`). `tile` returns the measured tile of a kind, N and K, if there is one. `make` returns a buffer of a name,
    dtype and shape; `counters` an operand of at least that many i32 zeros.
    """
    n, k = rows_of(y, activation), x.shape[-1]
    assert isinstance(k, int)
    common = {"max_tokens": max_tokens, "sm": sm, "bias": bias}

    def parts(sized: Tile) -> dict[str, Operand]:
        if sized.splits == 1:
            return {}
        blocks = -(-n // sized.block_n) * -(-max_tokens // sized.block_m)
        return {"workspace": make("partial", "f32", sized.splits, x.shape[0], n), "counters": counters(blocks)}

    def possible(kind: str, measured: Tile | None) -> Tile | None:
        """A measured tile, but one of a native kernel only if the linear can have it."""
        if measured is None or measured.route != NATIVE:
            return measured
        stored = "fp8" if kind == "fp8" else format
        squares = fused.squares is not None
        no = unlike(x, weights) or wrong(kind, n, k, stored, max_tokens, measured, sm, squares=squares)
        return None if no else measured

    if scales is not None:
        sized = possible("fp8", tile("fp8", n, k))
        if format != "fp8":
            weights = expanded(n, k)
            # A native kernel reads weights before it waits, and the launch before may make these.
            sized = None if sized is None or sized.route == NATIVE else sized
        sized = sized or tile_for("fp8", weights, n, k, "fp8", max_tokens, sm)
        build = linear_gemm if sized.route == NATIVE else linear_fp8
        return build(x, scales, weights, y, tile=sized, **parts(sized), **common)
    kind = "large" if max_tokens > SMALL_M else "small"
    measured = tile(kind, n, k) if weights[0].dtype != "f32" else None
    sized = possible(kind, measured) or tile_for(kind, weights, n, k, format, max_tokens, sm)
    decoded = {**common, "format": format, "activation": activation, "tile": sized}
    decoded |= {"residual": residual, "fused": fused}
    build = linear_large if kind == "large" else linear_stream if sized.route == NATIVE else linear_small
    return build(x, weights, y, **parts(sized), **decoded)
