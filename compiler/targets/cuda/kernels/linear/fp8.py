"""Linears with FP8 weights and activations (W8A8): FP8 tensor cores, at twice the rate of bf16, and no decoding.

Activations are quantized at run time (`../quantize_activations.py`): with one scale per token or one calibrated scale
(weights: one per row, "fp8"), or with one per token and 128 columns (weights: one per 128 x 128). Sums of 128 columns
are added in f32 (PROMOTE) where they have scales of their own. Otherwise the tensor core adds all: that of sm_90 keeps
13 to 14 bits of a sum, which is less than E4M3 has lost before; a benchmark measures what adding in f32 costs.
"""

# Triton's type stubs reject plain numbers as constexprs, and its loops.
# pyright: reportArgumentType=false, reportGeneralTypeIssues=false

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from typing import Any

import torch
import triton
import triton.language as tl

from ...call import ROUNDING, Case, Kernel, KernelCall, Operand, Suite, product
from ..fp8 import BLOCK, LARGEST, MINIMUM_SM, from_e4m3
from ..quantize_activations import quantized, scale_shape
from .large import GROUP_TILES, grouped
from .parts.common import dot, gather_parts, linear_call
from .parts.gated import finish_rows
from .tiles import COUNTERS, Tile, default_tile

DEVICE_TOLERANCE = 2.0**-10
"""Additional error of a case on FP8 tensor cores, whose sums of products keep 13 to 14 bits of mantissa on sm_90."""


@triton.jit
def load_e4m3(pointer, offset, inside, EVEN: tl.constexpr, EMULATE: tl.constexpr):
    """E4M3 bits as FP8, or as f32 for the interpreter, which cannot compute in FP8; 0 outside."""
    if EMULATE:
        values = from_e4m3(tl.load(pointer + offset, inside, 0), tl.float32)
    else:
        address = pointer.to(tl.pointer_type(tl.float8e4nv)) + offset
        values = tl.load(address) if EVEN else tl.load(address, inside, 0.0)
    return values


@triton.jit
def linear_fp8_kernel(
    x,
    x_scale,
    w,
    w_scale,
    bias,
    residual,
    y,
    workspace,
    counters,
    tokens,
    N: tl.constexpr,
    K: tl.constexpr,
    BLOCKS: tl.constexpr,
    STATIC: tl.constexpr,
    PROMOTE: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_K: tl.constexpr,
    SPLITS: tl.constexpr,
    SPAN: tl.constexpr,
    GROUP_ROWS: tl.constexpr,
    STAGES: tl.constexpr,
    EMULATE: tl.constexpr,
):
    """x u8 [tokens, K] times w u8 [N, K] (E4M3 bits) and their scales -> y [tokens, N], plus bias and residual.

    x_scale f32 [tokens], or f32 [1] with STATIC, and w_scale f32 [N]. With BLOCKS, which needs PROMOTE and BLOCK_K and
    BLOCK_N of at most 128: x_scale f32 [tokens, cdiv(K, 128)] and w_scale f32 [cdiv(N, 128), cdiv(K, 128)]. Grid: a
    program per block of rows and of tokens, then parts of K (SPAN columns each).
    """
    EVEN: tl.constexpr = K % BLOCK_K == 0
    SCALES: tl.constexpr = (K + 127) // 128
    part = tl.program_id(1)
    block_m, block_n = grouped(tl.program_id(0), tl.cdiv(tokens, BLOCK_M), tl.cdiv(N, BLOCK_N), GROUP_ROWS)
    row = block_n * BLOCK_N + tl.arange(0, BLOCK_N)
    token = block_m * BLOCK_M + tl.arange(0, BLOCK_M)
    read_row = (row if N % BLOCK_N == 0 else tl.minimum(row, N - 1)).to(tl.int64)
    read_token = tl.minimum(token, tokens - 1).to(tl.int64)
    start = part * SPAN
    stop = tl.minimum(start + SPAN, K)
    acc = tl.zeros([BLOCK_N, BLOCK_M], tl.float32)
    for k in tl.range(start, stop, BLOCK_K, num_stages=STAGES):
        column = k + tl.arange(0, BLOCK_K)
        weights = load_e4m3(w, read_row[:, None] * K + column[None, :], column[None, :] < K, EVEN, EMULATE)
        tile = load_e4m3(x, read_token[None, :] * K + column[:, None], column[:, None] < K, EVEN, EMULATE)
        if PROMOTE:
            part_sum = dot(weights, tile, tl.zeros([BLOCK_N, BLOCK_M], tl.float32), EMULATE)
            if BLOCKS:
                row_scale = tl.load(w_scale + (block_n * BLOCK_N // 128) * SCALES + k // 128)
                token_scale = tl.load(x_scale + read_token * SCALES + k // 128)
                acc += part_sum * (token_scale * row_scale)[None, :]
            else:
                acc += part_sum
        else:
            acc = dot(weights, tile, acc, EMULATE)
    if not BLOCKS:
        token_scale = tl.load(x_scale) if STATIC else tl.load(x_scale + read_token)[None, :]
        acc *= tl.load(w_scale + read_row)[:, None] * token_scale
    first = block_m * BLOCK_M
    if SPLITS == 1:
        finish_rows(*(acc, block_n, row, first, tokens, bias, residual, y, None, None, None), *(N, BLOCK_N, BLOCK_M, 0))
    else:
        inside = (token[None, :] < tokens) & (row[:, None] < N)
        block = block_m * tl.cdiv(N, BLOCK_N) + block_n
        acc, last = gather_parts(acc, row, token, inside, workspace, counters, block, part, tokens, N, SPLITS)
        if last:
            finish_rows(
                *(acc, block_n, row, first, tokens, bias, residual, y, None, None, None), *(N, BLOCK_N, BLOCK_M, 0)
            )


LINEAR = Kernel("linear_fp8", linear_fp8_kernel, MINIMUM_SM)


def linear_fp8(
    x_codes: Operand,
    x_scales: Operand,
    weights: tuple[Operand, ...],
    y: Operand,
    *,
    max_tokens: int,
    sm: int,
    bias: Operand | None = None,
    residual: Operand | None = None,
    workspace: Operand | None = None,
    counters: Operand | None = None,
    tile: Tile | None = None,
    promote: bool = False,
) -> KernelCall:
    """x [tokens, K] of `quantize_activations` times weights (codes u8 [N, K], scales f32) -> y [tokens, N].

    Weight scales f32 [N] go with x_scales f32 [tokens], or f32 [1] if they are calibrated; weight scales of blocks,
    f32 [cdiv(N, 128), cdiv(K, 128)], go with x_scales f32 [tokens, cdiv(K, 128)]. A tile with parts of K needs a
    workspace and counters as in `linear_small`.

    Raises:
        ValueError: parts of K without a workspace and counters.
    """
    tokens, k = x_codes.shape
    n = y.shape[-1]
    w, w_scale = weights
    static, blocks = x_scales.shape == (1,), len(w_scale.shape) == 2
    assert isinstance(n, int) and isinstance(k, int) and not (static and blocks)
    tile = tile or default_tile("fp8", n, k, "fp8", max_tokens, sm)
    added = {"bias": bias, "residual": residual, "workspace": workspace, "counters": counters}
    flags = {"BLOCKS": blocks, "STATIC": static, "PROMOTE": promote or blocks}
    return linear_call(
        LINEAR,
        tile,
        {"x": x_codes, "x_scale": x_scales, "w": w, "w_scale": w_scale, "y": y, **added},
        {"N": n, "K": k, **flags, "GROUP_ROWS": GROUP_TILES},
        (product(f"cdiv({tokens}, {tile.block_m})", -(-n // tile.block_n)), tile.splits),
        tokens=tokens,
    )


_CASES = (
    (3, 40, 208, "rows", "bf16", "bias", Tile(64, 128, 16, 1, 4, 3)),
    (1, 130, 384, "rows", "f16", "residual", Tile(64, 128, 16, 3, 4, 3)),
    (33, 70, 128, "rows", "bf16", "", Tile(128, 128, 16, 1, 4, 3)),
    (3, 200, 320, "blocks", "f16", "bias", Tile(64, 128, 16, 2, 4, 3)),
    (33, 130, 256, "blocks", "bf16", "residual", Tile(128, 128, 32, 1, 4, 3)),
    (3, 70, 208, "static", "bf16", "bias", Tile(64, 128, 16, 1, 4, 3)),
    (33, 130, 384, "static", "f16", "residual", Tile(64, 128, 32, 3, 4, 3)),
)
"""Tokens, N, K, form of the scales, dtype, added operand, tile."""


Build = Callable[..., KernelCall]
"""`linear_fp8`, or a function with its parameters."""


def _cases() -> Iterator[Case]:
    source = torch.Generator().manual_seed(7)
    for tokens, n, k, form, dtype, extra, tile in _CASES:
        yield _linear_case(source, tokens, n, k, form, dtype, extra, tile)
    yield _linear_case(source, 33, 70, 208, "rows", "bf16", "bias", Tile(128, 128, 32, 1, 4, 3), promote=False)


def cases(rows: Iterable[tuple[int, int, int, str, str, str, Tile]], build: Build) -> Iterator[Case]:
    """Cases of another kernel with this definition; rows as in `_CASES`."""
    source = torch.Generator().manual_seed(8)
    for tokens, n, k, form, dtype, extra, tile in rows:
        yield _linear_case(source, tokens, n, k, form, dtype, extra, tile, build=build)


def model_call(build: Build, n: int, k: int, form: str, max_tokens: int, sm: int, tile: Tile) -> KernelCall:
    """A call of a model's shape, with a residual; with a workspace if K is split."""
    extra = {"residual": Operand("residual", "bf16", ("tokens", n))}
    if tile.splits > 1:
        extra["workspace"] = Operand("workspace", "f32", (tile.splits, "tokens", n))
        extra["counters"] = Operand("counters", "i32", (COUNTERS,))
    return _operands(n, k, form, "bf16", max_tokens, sm, tile, extra, build=build)


def _linear_case(
    source: torch.Generator,
    tokens: int,
    n: int,
    k: int,
    form: str,
    dtype: str,
    extra: str,
    tile: Tile,
    promote: bool = True,
    build: Build = linear_fp8,
) -> Case:
    kind = {"bf16": torch.bfloat16, "f16": torch.float16}[dtype]
    x, x_scale = quantized(torch.randn(tokens, k, generator=source), form)
    w = (torch.randn(n, k, generator=source) * 90).clamp(-LARGEST, LARGEST).to(torch.float8_e4m3fn).view(torch.uint8)
    inputs: dict[str, Any] = {"x": x, "x_scale": x_scale, "w": w}
    exact_x, exact_w = (t.view(torch.float8_e4m3fn).double() for t in (x, w))
    if form == "blocks":
        w_scale = torch.rand(-(-n // BLOCK), -(-k // BLOCK), generator=source) * 1e-3
        exact_x *= x_scale.double().repeat_interleave(BLOCK, 1)[:, :k]
        exact_w *= w_scale.double().repeat_interleave(BLOCK, 0)[:n].repeat_interleave(BLOCK, 1)[:, :k]
    else:
        w_scale = torch.rand(n, generator=source) * 1e-3
        exact_x *= x_scale.double()[:, None]
        exact_w *= w_scale.double()[:, None]
    inputs["w_scale"] = w_scale
    expected = exact_x @ exact_w.T
    optional: dict[str, Operand] = {}
    if extra:
        shape = (n,) if extra == "bias" else ("tokens", n)
        inputs[extra] = torch.randn(n if extra == "bias" else (tokens, n), generator=source).to(kind)
        optional[extra] = Operand(extra, dtype, shape)
        expected = expected + inputs[extra].double()
    if tile.splits > 1:
        count = -(-n // tile.block_n) * -(-tokens // tile.block_m)
        optional["workspace"] = Operand("workspace", "f32", (tile.splits, "tokens", n))
        optional["counters"] = Operand("counters", "i32", (count,))
        inputs["counters"] = torch.zeros(count, dtype=torch.int32)
    call = _operands(n, k, form, dtype, tokens, 90, tile, optional, promote, build)
    name = f"{form}-{dtype}-{tokens}x{n}x{k}" + "-in-the-tensor-core" * (not promote)
    return Case(name, call, inputs, {"tokens": tokens}, {"y": expected}, ROUNDING[dtype], DEVICE_TOLERANCE)


def _operands(
    n: int,
    k: int,
    form: str,
    dtype: str,
    max_tokens: int,
    sm: int,
    tile: Tile,
    extra: dict[str, Operand],
    promote: bool = False,
    build: Build = linear_fp8,
) -> KernelCall:
    blocks = form == "blocks"
    return build(
        Operand("x", "u8", ("tokens", k)),
        Operand("x_scale", "f32", scale_shape(form, "tokens", k)),
        (Operand("w", "u8", (n, k)), Operand("w_scale", "f32", (-(-n // BLOCK), -(-k // BLOCK)) if blocks else (n,))),
        Operand("y", dtype, ("tokens", n)),
        max_tokens=max_tokens,
        sm=sm,
        tile=tile,
        promote=promote,
        **extra,
    )


def _calls(sm: int) -> Iterator[KernelCall]:
    for form in ("rows", "blocks"):
        for max_tokens in (16, 64, 8192):
            tile = default_tile("fp8", 4096, 14336, "fp8", max_tokens, sm)
            if form == "blocks":  # which have two sums
                tile = replace(tile, block_m=min(tile.block_m, 128))
            yield model_call(linear_fp8, 4096, 14336, form, max_tokens, sm, tile)


SUITE = Suite((LINEAR,), _cases, _calls)
