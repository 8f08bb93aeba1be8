"""act(gate) * up in the epilogue of the merged gate|up linear: saves a launch, and writing and reading both halves."""

# Triton's type stubs reject plain numbers as constexprs.
# pyright: reportArgumentType=false

from __future__ import annotations

from typing import Any

import triton
import triton.language as tl

from ..gated import activate
from .common import add_bias, finish


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
def finish_tile(
    acc,
    block,
    row,
    token,
    real,
    bias,
    residual,
    y,
    N: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_M: tl.constexpr,
    ACTIVATION: tl.constexpr,
    RUN: tl.constexpr,
):
    """`finish` for tile `block`, or if gate and up alternate, act(gate) * up into y [tokens, N / 2].

    real: True for each of `token` that exists.
    """
    if RUN == 0:
        finish(acc, row, token, real[None, :] & (row[:, None] < N), bias, residual, y, N)
    else:
        acc = add_bias(acc, row, bias, N)
        acc = tl.reshape(acc, [BLOCK_N // (2 * RUN), 2, RUN, BLOCK_M])
        gate, up = tl.split(tl.reshape(tl.permute(acc, [0, 2, 3, 1]), [BLOCK_N // 2, BLOCK_M, 2]))
        column = block * (BLOCK_N // 2) + tl.arange(0, BLOCK_N // 2)
        address = token[None, :].to(tl.int64) * (N // 2) + column[:, None]
        product = activate(gate, ACTIVATION) * up
        tl.store(y + address, product.to(y.dtype.element_ty), real[None, :] & (column[:, None] < N // 2))
