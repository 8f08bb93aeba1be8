"""act(gate) * up in the epilogue of the merged gate|up linear: saves a launch, and writing and reading both halves."""

# Triton's type stubs reject plain numbers as constexprs, and its loops.
# pyright: reportArgumentType=false, reportGeneralTypeIssues=false

from __future__ import annotations

from typing import Any

import triton
import triton.language as tl

from ...gated import activate
from ..dequantize import stored_column
from .common import add_bias, finish
from .fused import divided, leave_normed


@triton.constexpr_function
def run_of(ACTIVATION, FORMAT, BLOCK_N, WARPS) -> Any:
    """The run length in which rows of gate and up alternate in a tile of weights; 0: rows are in the weight's order.

    A thread of an accumulator holds rows 8 apart, or 8 * WARPS apart after `natural_rows`. With runs of that length a
    row of gate and its row of up are in one thread, so the epilogue moves no data between threads.
    """
    if ACTIVATION is None:
        return 0
    return 8 * WARPS if FORMAT != "dense" and BLOCK_N >= 16 * WARPS else 8


@triton.jit
def tile_rows(block, N: tl.constexpr, BLOCK_N: tl.constexpr, RUN: tl.constexpr):
    """The rows of the weight [N, K] in tile `block`, N or more past the end; see `run_of`."""
    local = tl.arange(0, BLOCK_N)
    if RUN == 0:
        row = block * BLOCK_N + local
    else:
        gate = block * (BLOCK_N // 2) + local // (2 * RUN) * RUN + local % RUN
        row = gate + local // RUN % 2 * (N // 2)
        if N % BLOCK_N != 0:
            row = tl.where(gate < N // 2, row, N)
    return row


@triton.jit
def gate_and_up(acc, BLOCK_N: tl.constexpr, BLOCK_M: tl.constexpr, RUN: tl.constexpr):
    """The two halves [BLOCK_N / 2, tokens] of a tile of sums [BLOCK_N, tokens] whose rows alternate in runs."""
    acc = tl.reshape(acc, [BLOCK_N // (2 * RUN), 2, RUN, BLOCK_M])
    return tl.split(tl.reshape(tl.permute(acc, [0, 2, 3, 1]), [BLOCK_N // 2, BLOCK_M, 2]))


@triton.jit
def finish_rows(
    acc,
    block,
    row,
    first,
    tokens,
    bias,
    residual,
    y,
    norm_weight,
    normed,
    squares,
    N: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_M: tl.constexpr,
    ORDER: tl.constexpr,
):
    """`finish` and, with norm_weight, `leave_normed` for tile `block`; by quarters of its tokens if they are many.

    Addresses of 256 tokens at once need more registers than a thread has.
    """
    if BLOCK_M >= 256:
        QUARTER: tl.constexpr = BLOCK_M // 4
        halves = tl.split(tl.permute(tl.reshape(acc, [BLOCK_N, 2, 2, QUARTER]), [0, 3, 2, 1]))
        for half in tl.static_range(2):
            quarters = tl.split(halves[half])
            for quarter in tl.static_range(2):
                finish_some(
                    *(quarters[quarter], block, row, first + (2 * half + quarter) * QUARTER, tokens, bias, residual, y),
                    *(norm_weight, normed, squares, N, BLOCK_N, QUARTER, ORDER),
                )
    else:
        finish_some(
            *(acc, block, row, first, tokens, bias, residual, y, norm_weight, normed, squares),
            *(N, BLOCK_N, BLOCK_M, ORDER),
        )


@triton.jit
def finish_some(
    acc,
    block,
    row,
    first,
    tokens,
    bias,
    residual,
    y,
    norm_weight,
    normed,
    squares,
    N: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_M: tl.constexpr,
    ORDER: tl.constexpr,
):
    """`finish_rows` of all tokens at once."""
    token = first + tl.arange(0, BLOCK_M)
    inside = (token < tokens)[None, :] & (row[:, None] < N)
    number = finish(acc, row, token, inside, bias, residual, y, N)
    if norm_weight is not None:
        leave_normed(
            *(number, block, row, token, inside, norm_weight, normed, squares, tokens),
            *(N, BLOCK_N, BLOCK_M, ORDER),
        )


@triton.jit
def finish_tile(
    acc,
    block,
    row,
    first,
    tokens,
    x_squares,
    bias,
    residual,
    y,
    norm_weight,
    normed,
    squares,
    N: tl.constexpr,
    K: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_M: tl.constexpr,
    ACTIVATION: tl.constexpr,
    RUN: tl.constexpr,
    EPSILON: tl.constexpr,
    ORDER: tl.constexpr,
):
    """`finish` for tile `block` of rows and the tokens from `first` on, or if gate and up alternate, act(gate) * up
    into y [tokens, N / 2].

    For x_squares, norm_weight, normed, squares and ORDER see `Fused`.
    """
    token = first + tl.arange(0, BLOCK_M)
    real = token < tokens
    if x_squares is not None:
        acc = divided(acc, x_squares, token, tokens, K, EPSILON, BLOCK_M)
    if RUN == 0:
        finish_rows(
            *(acc, block, row, first, tokens, bias, residual, y, norm_weight, normed, squares),
            *(N, BLOCK_N, BLOCK_M, ORDER),
        )
    else:
        gate, up = gate_and_up(add_bias(acc, row, bias, N), BLOCK_N, BLOCK_M, RUN)
        column = block * (BLOCK_N // 2) + tl.arange(0, BLOCK_N // 2)
        address = token[None, :].to(tl.int64) * (N // 2) + stored_column(column, ORDER)[:, None]
        product = activate(gate, ACTIVATION) * up
        tl.store(y + address, product.to(y.dtype.element_ty), real[None, :] & (column[:, None] < N // 2))
