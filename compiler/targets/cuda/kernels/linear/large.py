"""Linears of many tokens (prefill, large batches): tiles for tensor cores, with weights decoded in registers.

Weight rows are the first operand of the dot here too: only the first operand may come from registers.
"""

from __future__ import annotations

from collections.abc import Iterator

import triton
import triton.language as tl

from ...call import Case, Kernel, KernelCall, Operand, Suite, product
from . import cases as linear_cases
from .parts.common import (
    constants_of,
    gather_parts,
    linear_call,
    named,
    rows_of,
    scale_sum,
    tile_for,
)
from .parts.fused import ALONE, Fused
from .parts.gated import finish_tile, run_of, tile_rows
from .parts.sums import dense_sum, quantized_sum
from .tiles import Tile

GROUP_TILES = 8
"""Blocks of tokens that use a block of weight rows before the next one is read, so that it stays in L2."""


@triton.jit
def grouped(program, rows, columns, GROUP_ROWS: tl.constexpr):
    """(row, column) of a program in a grid of rows x columns, in bands of GROUP_ROWS rows, column by column."""
    band = program // (GROUP_ROWS * columns)
    first = band * GROUP_ROWS
    height = tl.minimum(rows - first, GROUP_ROWS)
    within = program % (GROUP_ROWS * columns)
    return first + within % height, within // height


@triton.jit
def linear_large_kernel(
    x,
    x_squares,
    w,
    scale,
    tensor_scale,
    bias,
    residual,
    y,
    norm_weight,
    normed,
    squares,
    workspace,
    counters,
    tokens,
    N: tl.constexpr,
    K: tl.constexpr,
    FORMAT: tl.constexpr,
    PER_WORD: tl.constexpr,
    GROUP: tl.constexpr,
    FACTOR: tl.constexpr,
    ACTIVATION: tl.constexpr,
    ORDERED: tl.constexpr,
    EPSILON: tl.constexpr,
    ORDER: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_K: tl.constexpr,
    SPLITS: tl.constexpr,
    SPAN: tl.constexpr,
    GROUP_ROWS: tl.constexpr,
    WARPS: tl.constexpr,
    STAGES: tl.constexpr,
    EMULATE: tl.constexpr,
):
    """x [tokens, K] times the weight's rows -> y [tokens, N], plus bias [N] and residual [tokens, N].

    With ACTIVATION the weight has the rows of gate, then of up, and y [tokens, N / 2] is act(gate) * up. scale and
    tensor_scale are the format's. Grid: a program per block of rows and of tokens, then parts of K (SPAN columns each).
    """
    EVEN: tl.constexpr = K % BLOCK_K == 0
    RUN: tl.constexpr = run_of(ACTIVATION, FORMAT, BLOCK_N, WARPS)
    part = tl.program_id(1)
    block_m, block_n = grouped(tl.program_id(0), tl.cdiv(tokens, BLOCK_M), tl.cdiv(N, BLOCK_N), GROUP_ROWS)
    row = tile_rows(block_n, N, BLOCK_N, RUN)
    token = block_m * BLOCK_M + tl.arange(0, BLOCK_M)
    read_row = (row if N % BLOCK_N == 0 else tl.minimum(row, N - 1)).to(tl.int64)
    read_token = tl.minimum(token, tokens - 1).to(tl.int64)
    start = part * SPAN
    stop = tl.minimum(start + SPAN, K)
    if FORMAT == "dense":
        acc = dense_sum(x, w, read_row, read_token, start, stop, K, BLOCK_N, BLOCK_M, BLOCK_K, EVEN, STAGES, EMULATE)
    else:
        acc = quantized_sum(
            x,
            w,
            scale,
            read_row,
            read_token,
            start,
            stop,
            K=K,
            FORMAT=FORMAT,
            PER_WORD=PER_WORD,
            GROUP=GROUP,
            BLOCK_N=BLOCK_N,
            BLOCK_M=BLOCK_M,
            BLOCK_K=BLOCK_K,
            ORDERED=ORDERED,
            EVEN=EVEN,
            WARPS=WARPS,
            STAGES=STAGES,
            EMULATE=EMULATE,
        )
        acc = scale_sum(acc, scale, tensor_scale, read_row, FORMAT, FACTOR)
    last = True
    if SPLITS > 1:
        inside = (token[None, :] < tokens) & (row[:, None] < N)
        block = block_m * tl.cdiv(N, BLOCK_N) + block_n
        acc, last = gather_parts(acc, row, token, inside, workspace, counters, block, part, tokens, N, SPLITS)
    if last:
        finish_tile(
            *(acc, block_n, row, block_m * BLOCK_M, tokens, x_squares, bias, residual, y, norm_weight, normed, squares),
            *(N, K, BLOCK_N, BLOCK_M, ACTIVATION, RUN, EPSILON, ORDER),
        )


KERNEL = Kernel("linear_large", linear_large_kernel)


def linear_large(
    x: Operand,
    weights: tuple[Operand, ...],
    y: Operand,
    *,
    format: str,
    max_tokens: int,
    sm: int,
    bias: Operand | None = None,
    residual: Operand | None = None,
    workspace: Operand | None = None,
    counters: Operand | None = None,
    activation: str | None = None,
    tile: Tile | None = None,
    fused: Fused = ALONE,
) -> KernelCall:
    """x [tokens, K] times weights [N, K] in their format -> y [tokens, N], in act dtype or f32; see `linear_small`."""
    tokens, k = x.shape
    n = rows_of(y, activation)
    assert isinstance(k, int)
    tile = tile or tile_for("large", weights, n, k, format, max_tokens, sm)
    added = {"bias": bias, "residual": residual, "workspace": workspace, "counters": counters}
    return linear_call(
        KERNEL,
        tile,
        {"x": x, **named(weights), "y": y, **added, **fused.operands},
        {**constants_of(x, format, n, activation), **fused.constants, "GROUP_ROWS": GROUP_TILES},
        (product(f"cdiv({tokens}, {tile.block_m})", -(-n // tile.block_n)), tile.splits),
        tokens=tokens,
    )


def _cases() -> Iterator[Case]:
    for spec in linear_cases.LARGE:
        yield linear_cases.case(linear_large, spec)


def _calls(sm: int) -> Iterator[KernelCall]:
    for format in linear_cases.FORMATS:
        yield linear_cases.model_call(linear_large, 4096, 14336, format, "bf16", 8192, sm, "large")
    yield linear_cases.model_call(linear_large, 28672, 4096, "dense", "bf16", 8192, sm, "large")
    yield linear_cases.model_call(linear_large, 28672, 4096, "nvfp4", "f16", 8192, sm, "large")


SUITE = Suite((KERNEL,), _cases, _calls)
