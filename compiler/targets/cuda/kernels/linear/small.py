"""Linears of 1 to 64 tokens: weights are streamed once, so weight rows are the long side of the dot.

If row blocks do not fill the chip, K is split: parts leave f32 sums in a workspace, and the last program of a block,
found by an integer counter, adds them in the order of the parts and resets the counter to 0.
"""

from __future__ import annotations

from collections.abc import Iterator

import triton
import triton.language as tl

from ...call import Case, Kernel, KernelCall, Operand, Suite
from . import cases as linear_cases
from .parts.ahead import bytes_ahead, read_ahead
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


@triton.jit
def linear_small_kernel(
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
    WARPS: tl.constexpr,
    STAGES: tl.constexpr,
    AHEAD: tl.constexpr,
    EMULATE: tl.constexpr,
):
    """x [tokens, K] times the weight's rows -> y [tokens, N], plus bias [N] and residual [tokens, N].

    With ACTIVATION the weight has the rows of gate, then of up, and y [tokens, N / 2] is act(gate) * up. scale and
    tensor_scale are the format's. Grid: blocks of rows, blocks of tokens, parts of K (SPAN columns each).
    AHEAD bytes of each row's part are brought to L2 before the launch before has ended.
    """
    EVEN: tl.constexpr = K % BLOCK_K == 0
    RUN: tl.constexpr = run_of(ACTIVATION, FORMAT, BLOCK_N, WARPS)
    block_n, part = tl.program_id(0), tl.program_id(2)
    row = tile_rows(block_n, N, BLOCK_N, RUN)
    first = tl.program_id(1) * BLOCK_M
    token = first + tl.arange(0, BLOCK_M)
    read_row = (row if N % BLOCK_N == 0 else tl.minimum(row, N - 1)).to(tl.int64)
    read_token = tl.minimum(token, tokens - 1).to(tl.int64)
    start = part * SPAN
    if AHEAD > 0 and not EMULATE:
        read_ahead(w, read_row, start, K, PER_WORD, AHEAD)
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
        block = tl.program_id(1) * tl.num_programs(0) + block_n
        acc, last = gather_parts(acc, row, token, inside, workspace, counters, block, part, tokens, N, SPLITS)
    if last:
        finish_tile(
            *(
                acc,
                block_n,
                row,
                tl.program_id(1) * BLOCK_M,
                tokens,
                x_squares,
                bias,
                residual,
                y,
                norm_weight,
                normed,
                squares,
            ),
            *(N, K, BLOCK_N, BLOCK_M, ACTIVATION, RUN, EPSILON, ORDER),
        )


KERNEL = Kernel("linear_small", linear_small_kernel)


def linear_small(
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
    """x [tokens, K] times weights [N, K] in their format -> y [tokens, N], in act dtype or f32, for few tokens.

    Weights are the format's tensors in order; format "dense" is one tensor, bf16, f16 or f32. A tile with parts of K
    needs workspace f32 [splits, tokens, N] and counters i32, zeros, one for each block of y. With an activation the
    weights are gate, then up, and y [tokens, N / 2] is act(gate) * up.

    Raises:
        ValueError: parts of K without a workspace and counters, or a residual with an activation.
    """
    tokens, k = x.shape
    n = rows_of(y, activation)
    assert isinstance(k, int)
    tile = tile or tile_for("small", weights, n, k, format, max_tokens, sm)
    added = {"bias": bias, "residual": residual, "workspace": workspace, "counters": counters}
    return linear_call(
        KERNEL,
        tile,
        {"x": x, **named(weights), "y": y, **added, **fused.operands},
        {
            **constants_of(x, format, n, activation),
            **fused.constants,
            "AHEAD": bytes_ahead(weights[0], k, tile.splits, tile.span(k), max_tokens, sm),
        },
        (-(-n // tile.block_n), f"cdiv({tokens}, {tile.block_m})", tile.splits),
        tokens=tokens,
    )


def _cases() -> Iterator[Case]:
    for spec in linear_cases.SMALL:
        yield linear_cases.case(linear_small, spec)


def _calls(sm: int) -> Iterator[KernelCall]:
    for format in linear_cases.FORMATS:
        for n, k in linear_cases.LLAMA_LAYERS:
            yield linear_cases.model_call(linear_small, n, k, format, "bf16", 16, sm)
        for n, k in linear_cases.LLAMA_LAYERS[2:]:
            yield linear_cases.model_call(linear_small, n, k, format, "bf16", 64, sm)
    yield linear_cases.model_call(linear_small, 4096, 4096, "nvfp4", "f16", 16, sm)
    yield linear_cases.model_call(linear_small, 128256, 4096, "dense", "bf16", 16, sm)


SUITE = Suite((KERNEL,), _cases, _calls)
