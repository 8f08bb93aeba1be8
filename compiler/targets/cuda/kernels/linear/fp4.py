"""Linears with FP4 weights and activations (W4A4), on the block-scaled tensor cores of Blackwell: nothing is decoded.

Both sides are E2M1 with scales of groups along K, which the instruction multiplies in: E4M3 for 16 (nvfp4) or powers of
two for 32 (mxfp4). Tokens are the rows of the tile, so a thread holds neighbours of an output row, and the epilogue can
write the next linear's codes (`../fp4.py`).
"""

# Triton's type stubs reject plain numbers as constexprs, and its loops.
# pyright: reportArgumentType=false, reportGeneralTypeIssues=false

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import torch
import triton
import triton.language as tl

from ......quantize import FORMATS
from ......quantize.activations import GROUP, dequantize_activations, quantize_activations
from ......runtime.chips import SHARED
from ...call import ROUNDING, Case, Kernel, KernelCall, Operand, Suite, product
from ..fp4 import MINIMUM_SM, group_of, is_nvfp4, scale_number, store_groups, unit_of
from ..gated import REFERENCE, activate
from ..quantize_fp4 import narrow
from .cases import GATE_UP, LLAMA_LAYERS, weight_operands
from .large import GROUP_TILES, grouped
from .parts.common import linear_call, named, rows_of
from .tiles import Tile

BLOCK_M = 128
"""Tokens of a tile: a block-scaled instruction of sm_100 has so many rows, and Triton turns smaller tiles to bf16."""

LEAST_COLUMNS = 32
"""Columns of a result that every tile has together, of which it can write whole groups."""


@triton.jit
def _numbers(codes, scales, GROUP: tl.constexpr):
    """The f32 numbers [ROWS, K] of codes u8 [ROWS, K / 2] and scales u8 [ROWS, K / GROUP], for the interpreter."""
    ROWS: tl.constexpr = codes.shape[0]
    GROUPS: tl.constexpr = scales.shape[1]
    wide = codes.to(tl.int32)
    code = tl.reshape(tl.join(wide & 15, wide >> 4), [ROWS, GROUPS, GROUP])
    half = (((code & 8) << 12) | ((code & 7) << 9)).to(tl.int16).to(tl.float16, bitcast=True)
    return tl.reshape(half.to(tl.float32) * 16384.0 * scale_number(scales, GROUP)[:, :, None], [ROWS, GROUPS * GROUP])


@triton.jit
def _block(codes, scales, row, first, K: tl.constexpr, GROUP: tl.constexpr, BLOCK_K: tl.constexpr, EVEN: tl.constexpr):
    """Codes u8 [ROWS, BLOCK_K / 2] and scales u8 [ROWS, BLOCK_K / GROUP] of rows i64, 0 past the row's end."""
    byte = first // 2 + tl.arange(0, BLOCK_K // 2)
    group = first // GROUP + tl.arange(0, BLOCK_K // GROUP)
    at = codes + row[:, None] * (K // 2) + byte[None, :]
    scale_at = scales + row[:, None] * (K // GROUP) + group[None, :]
    if EVEN:
        found = tl.load(at)
        stored = tl.load(scale_at)
    else:
        found = tl.load(at, byte[None, :] < K // 2, 0)
        stored = tl.load(scale_at, group[None, :] < K // GROUP, 0)
    return found, stored


@triton.jit
def linear_fp4_kernel(
    x,
    x_scale,
    w,
    scale,
    tensor_scale,
    bias,
    residual,
    y,
    y_scale,
    tokens,
    N: tl.constexpr,
    K: tl.constexpr,
    GROUP: tl.constexpr,
    ACTIVATION: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_K: tl.constexpr,
    GROUP_ROWS: tl.constexpr,
    STAGES: tl.constexpr,
    EMULATE: tl.constexpr,
):
    """x u8 [tokens, K / 2] times w u8 [N, K / 2] (E2M1 codes), with scales u8 [tokens or N, K / GROUP] and tensor_scale
    f32 of nvfp4 -> y [tokens, N], plus bias [N] and residual [tokens, N].

    With ACTIVATION the weight has the rows of gate, then of up, and y [tokens, N / 2] is act(gate) * up. With y_scale
    u8 [tokens, columns / GROUP] y is u8 [tokens, columns / 2], its codes. Grid: a program per block of both.
    """
    EVEN: tl.constexpr = K % BLOCK_K == 0
    block_m, block_n = grouped(tl.program_id(0), tl.cdiv(tokens, BLOCK_M), tl.cdiv(N, BLOCK_N), GROUP_ROWS)
    row = block_n * BLOCK_N + tl.arange(0, BLOCK_N)
    if ACTIVATION is not None:  # rows of gate and up take turns, so that both are neighbours in a token's sums
        row = row // 2 + row % 2 * (N // 2)
    token = block_m * BLOCK_M + tl.arange(0, BLOCK_M)
    real = token < tokens
    read_row = tl.minimum(row, N - 1).to(tl.int64)
    read_token = tl.minimum(token, tokens - 1).to(tl.int64)
    acc = tl.zeros([BLOCK_M, BLOCK_N], tl.float32)
    for k in tl.range(0, K, BLOCK_K, num_stages=STAGES):
        tile, tile_scale = _block(x, x_scale, read_token, k, K, GROUP, BLOCK_K, EVEN)
        weights, weight_scale = _block(w, scale, read_row, k, K, GROUP, BLOCK_K, EVEN)
        if EMULATE:
            numbers = tl.trans(_numbers(weights, weight_scale, GROUP))
            acc += tl.dot(_numbers(tile, tile_scale, GROUP), numbers, input_precision="ieee")
        elif is_nvfp4(GROUP):
            acc = tl.dot_scaled(
                tile,
                tile_scale.to(tl.float8e4nv, bitcast=True),
                "e2m1",
                tl.trans(weights),
                weight_scale.to(tl.float8e4nv, bitcast=True),
                "e2m1",
                acc,
            )
        else:
            acc = tl.dot_scaled(tile, tile_scale, "e2m1", tl.trans(weights), weight_scale, "e2m1", acc)
    if tensor_scale is not None:
        acc *= tl.load(tensor_scale) * unit_of(GROUP)
    if bias is not None:
        acc += tl.load(bias + row, row < N, 0.0).to(tl.float32)[None, :]
    if ACTIVATION is not None:
        gate, up = tl.split(tl.reshape(acc, [BLOCK_M, BLOCK_N // 2, 2]))
        acc = activate(gate, ACTIVATION) * up
    COLUMNS: tl.constexpr = N if ACTIVATION is None else N // 2
    WIDTH: tl.constexpr = acc.shape[1]
    column = block_n * WIDTH + tl.arange(0, WIDTH)
    inside = real[:, None] & (column[None, :] < COLUMNS)
    address = token[:, None].to(tl.int64) * COLUMNS + column[None, :]
    if residual is not None:
        acc += tl.load(residual + address, inside, 0.0).to(tl.float32)
    if y_scale is not None:
        store_groups(acc, y, y_scale, token.to(tl.int64), real, block_n * WIDTH, COLUMNS, GROUP)
    else:
        tl.store(y + address, acc.to(y.dtype.element_ty), inside)


KERNEL = Kernel("linear_fp4", linear_fp4_kernel, MINIMUM_SM)


def fp4_tile(sm: int) -> Tile:
    """The tile of large steps: 128 x 256 where the accumulator has a memory of its own, 128 x 128 in registers."""
    return Tile(256, 256, BLOCK_M, 1, 8, 4) if SHARED[sm] > 200 << 10 else Tile(128, 128, BLOCK_M, 1, 8, 4)


def linear_fp4(
    x_codes: Operand,
    x_scales: Operand,
    weights: tuple[Operand, ...],
    y: Operand,
    *,
    sm: int,
    bias: Operand | None = None,
    residual: Operand | None = None,
    activation: str | None = None,
    y_scales: Operand | None = None,
    tile: Tile | None = None,
) -> KernelCall:
    """Codes x u8 [tokens, K / 2] and scales u8 [tokens, K / group] times weights [N, K] of the same format -> y.

    y is [tokens, N], or [tokens, N / 2] with an activation; with y_scales u8 [tokens, columns / group] it is u8, the
    codes that `quantize_fp4` would give for the f32 result.
    """
    tokens, half = x_codes.shape
    assert isinstance(half, int)
    k = 2 * half
    columns = y.shape[-1] * (1 if y_scales is None else 2)
    assert isinstance(columns, int)
    n = rows_of(Operand("y", "f32", (tokens, columns)), activation)
    tile = tile or fp4_tile(sm)
    assert tile.block_m == BLOCK_M and tile.splits == 1
    call = linear_call(
        KERNEL,
        tile,
        {"x": x_codes, "x_scale": x_scales, **named(weights), "y": y, "y_scale": y_scales}
        | {"bias": bias, "residual": residual},
        {"N": n, "K": k, "GROUP": group_of(x_scales, k), "ACTIVATION": activation, "GROUP_ROWS": GROUP_TILES},
        (product(f"cdiv({tokens}, {tile.block_m})", -(-n // tile.block_n)),),
        tokens=tokens,
    )
    return call if y_scales is None else replace(call, writes=("y", "y_scale"))


_SMALL = Tile(64, 128, 128, 1, 4, 3)
_CASES = (
    ("nvfp4", 33, 134, 160, "bf16", "", ("bias",), _SMALL),
    ("nvfp4", 17, 64, 64, "f16", "", ("residual",), Tile(32, 64, 128, 1, 4, 3)),
    ("nvfp4", 33, 192, 144, "bf16", "silu", ("bias",), _SMALL),
    ("nvfp4", 5, 192, 128, "codes", "relu", (), _SMALL),
    ("mxfp4", 33, 70, 160, "bf16", "", ("bias", "residual"), _SMALL),
    ("mxfp4", 5, 192, 64, "codes", "gelu_pytorch_tanh", ("bias",), _SMALL),
)
"""Format, tokens, N, K, dtype of the result or "codes", activation, added operands, tile."""


def _cases() -> Iterator[Case]:
    source = torch.Generator().manual_seed(11)
    for spec in _CASES:
        yield _case(source, *spec)


def _case(
    source: torch.Generator,
    format: str,
    tokens: int,
    n: int,
    k: int,
    dtype: str,
    activation: str,
    added: tuple[str, ...],
    tile: Tile,
) -> Case:
    x = torch.randn(tokens, k, generator=source)
    codes, scales = quantize_activations(x, format)
    parts = FORMATS[format].quantize(torch.randn(n, k, generator=source) * 0.3)
    weights = weight_operands(format, n, k, "bf16")
    inputs: dict[str, Any] = {"codes": codes, "scales": scales}
    inputs |= {one.name: torch.from_numpy(np.array(parts[one.name])) for one in weights}
    exact = torch.from_numpy(FORMATS[format].dequantize(parts)).double()
    expected = dequantize_activations(codes, scales, format) @ exact.T
    extra: dict[str, Any] = {}
    for name in added:
        shape = (n,) if name == "bias" else ("tokens", n)
        inputs[name] = torch.randn(n if name == "bias" else (tokens, n), generator=source)
        extra[name] = Operand(name, "f32", shape)
        expected = expected + inputs[name].double()
    if activation:
        gate, up = expected.chunk(2, dim=1)
        expected = REFERENCE[activation](gate) * up
        extra["activation"] = activation
    width, outcome, tolerance = expected.shape[1], {"y": expected}, ROUNDING.get(dtype, 0.0)
    y = Operand("y", dtype, ("tokens", width)) if dtype != "codes" else None
    if y is None:
        made, stored = quantize_activations(expected, format)
        outcome = {"y": made, "y_scale": stored}
        y, of_y = (replace(one, name=name) for one, name in zip(narrow(width, format), outcome, strict=True))
        extra["y_scales"] = of_y
    call = linear_fp4(*narrow(k, format), weights, y, sm=100, tile=tile, **extra)
    name = f"{format}-{activation or dtype}-{dtype}-{tokens}x{n}x{k}"
    return Case(name, call, inputs, {"tokens": tokens}, outcome, tolerance)


def _calls(sm: int) -> Iterator[KernelCall]:
    if sm < MINIMUM_SM:
        return
    for format in GROUP:
        for n, k in LLAMA_LAYERS:
            gated = (n, k) == GATE_UP
            y, extra = Operand("y", "bf16", ("tokens", n)), dict[str, Any]()
            if gated:
                y, of_y = (replace(one, name=f"y.{one.name}") for one in narrow(n // 2, format))
                extra = {"activation": "silu", "y_scales": of_y}
            yield linear_fp4(*narrow(k, format), weight_operands(format, n, k, "bf16"), y, sm=sm, **extra)


SUITE = Suite((KERNEL,), _cases, _calls)
