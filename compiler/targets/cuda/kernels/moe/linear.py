"""Linears of experts as one grouped product: every block of sorted rows is multiplied by its expert's weights.

Rows of gate and up alternate in the stack of gate_up, so the product can end with the activation: a tile takes them in
runs, as `linear/parts/gated.py` does with rows that lie apart.
"""

# Triton's type stubs reject plain numbers as constexprs.
# pyright: reportArgumentType=false

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import triton
import triton.language as tl

from ...call import Case, Constant, Kernel, KernelCall, Operand, Suite, product, total
from ..gated import activate
from ..linear.parts.common import constants_of, finish, gather_parts, linear_call, named, scale_sum
from ..linear.parts.gated import gate_and_up, run_of
from ..linear.parts.sums import dense_sum, quantized_sum
from ..linear.tiles import Tile
from . import cases as moe_cases
from .sort import Sorted


@triton.jit
def tile_rows(block, BLOCK_N: tl.constexpr, RUN: tl.constexpr):
    """The rows of a weight [N, K] in tile `block`: with runs, RUN rows of gate, then the rows of up behind each."""
    local = tl.arange(0, BLOCK_N)
    if RUN == 0:
        row = block * BLOCK_N + local
    else:
        pair = block * (BLOCK_N // 2) + local // (2 * RUN) * RUN + local % RUN
        row = 2 * pair + local // RUN % 2
    return row


@triton.jit
def activated(gate, up, ACTIVATION: tl.constexpr, ALPHA: tl.constexpr, LIMIT: tl.constexpr):
    """act(gate) * up; "limited" is that of GPT-OSS (`passes/graph/experts.py`). A NaN stays one."""
    if ACTIVATION == "limited":
        gate = tl.minimum(gate, LIMIT, propagate_nan=tl.PropagateNan.ALL)
        up = tl.minimum(up, LIMIT, propagate_nan=tl.PropagateNan.ALL)
        up = tl.maximum(up, -LIMIT, propagate_nan=tl.PropagateNan.ALL)
        number = gate / (1.0 + tl.exp(-ALPHA * gate)) * (up + 1.0)
    else:
        number = activate(gate, ACTIVATION) * up
    return number


@triton.jit
def finish_experts(
    acc,
    block,
    row,
    place,
    assignment,
    expert,
    bias,
    shares,
    y,
    N: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_M: tl.constexpr,
    ACTIVATION: tl.constexpr,
    ALPHA: tl.constexpr,
    LIMIT: tl.constexpr,
    RUN: tl.constexpr,
):
    """Sums [rows of the weight, places] times the shares of their assignments, plus the expert's bias, activated, into
    y."""
    real = assignment >= 0
    if shares is not None:
        acc *= tl.load(shares + assignment, real, 0.0)[None, :]
    if bias is not None:
        acc += tl.load(bias + expert * N + row, row < N, 0.0).to(tl.float32)[:, None]
    if RUN == 0:
        finish(acc, row, place, real[None, :] & (row[:, None] < N), None, None, y, N)
    else:
        gate, up = gate_and_up(acc, BLOCK_N, BLOCK_M, RUN)
        column = block * (BLOCK_N // 2) + tl.arange(0, BLOCK_N // 2)
        address = place[None, :].to(tl.int64) * (N // 2) + column[:, None]
        number = activated(gate, up, ACTIVATION, ALPHA, LIMIT)
        tl.store(y + address, number.to(y.dtype.element_ty), real[None, :] & (column[:, None] < N // 2))


@triton.jit
def moe_linear_kernel(
    x,
    w,
    scale,
    tensor_scale,
    assignment_of_row,
    expert_of_block,
    bias,
    shares,
    y,
    workspace,
    counters,
    N: tl.constexpr,
    K: tl.constexpr,
    FORMAT: tl.constexpr,
    PER_WORD: tl.constexpr,
    GROUP: tl.constexpr,
    FACTOR: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_K: tl.constexpr,
    SPLITS: tl.constexpr,
    SPAN: tl.constexpr,
    CHOSEN: tl.constexpr,
    GATHER: tl.constexpr,
    ACTIVATION: tl.constexpr,
    ALPHA: tl.constexpr,
    LIMIT: tl.constexpr,
    WARPS: tl.constexpr,
    STAGES: tl.constexpr,
    EMULATE: tl.constexpr,
):
    """Rows of x times their experts' weights [E, N, K] -> y [rows, N], plus bias [E, N]; padding rows are not written.

    With GATHER row r reads the token of assignment_of_row[r] of x [tokens, K], else row r of x [rows, K]. With shares
    f32 [tokens, CHOSEN] the product of an assignment is multiplied by its share. With ACTIVATION rows of the weight are
    a row of gate, the same of up, and so on, and y is [rows, N / 2]. Grid: blocks of weight rows, blocks of rows, parts
    of K (SPAN columns each). A block whose expert is -1 has no rows.
    """
    EVEN: tl.constexpr = K % BLOCK_K == 0
    RUN: tl.constexpr = run_of(ACTIVATION, FORMAT, BLOCK_N, WARPS)
    block_n, part = tl.program_id(0), tl.program_id(2)
    expert = tl.load(expert_of_block + tl.program_id(1)).to(tl.int64)
    if expert >= 0:
        row = tile_rows(block_n, BLOCK_N, RUN)
        place = tl.program_id(1) * BLOCK_M + tl.arange(0, BLOCK_M)
        assignment = tl.load(assignment_of_row + place)
        # Experts' weights are stacked, so row n of expert e is row e * N + n of one weight.
        read_row = expert * N + (row if N % BLOCK_N == 0 else tl.minimum(row, N - 1))
        read_token = (tl.maximum(assignment, 0) // CHOSEN if GATHER else place).to(tl.int64)
        start = part * SPAN
        stop = tl.minimum(start + SPAN, K)
        if FORMAT == "dense":
            acc = dense_sum(
                x, w, read_row, read_token, start, stop, K, BLOCK_N, BLOCK_M, BLOCK_K, EVEN, STAGES, EMULATE
            )
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
                ORDERED=False,
                EVEN=EVEN,
                WARPS=WARPS,
                STAGES=STAGES,
                EMULATE=EMULATE,
            )
            if FORMAT == "nvfp4":
                acc = scale_sum(acc, scale, tensor_scale + expert, read_row, FORMAT, FACTOR)
            else:
                acc = scale_sum(acc, scale, tensor_scale, read_row, FORMAT, FACTOR)
        last = True
        if SPLITS > 1:
            inside = (assignment[None, :] >= 0) & (row[:, None] < N)
            rows = tl.num_programs(1) * BLOCK_M
            block = tl.program_id(1) * tl.num_programs(0) + block_n
            acc, last = gather_parts(acc, row, place, inside, workspace, counters, block, part, rows, N, SPLITS)
        if last:
            finish_experts(
                *(acc, block_n, row, place, assignment, expert, bias, shares, y),
                *(N, BLOCK_N, BLOCK_M, ACTIVATION, ALPHA, LIMIT, RUN),
            )


KERNEL = Kernel("moe_linear", moe_linear_kernel)


@dataclass(frozen=True)
class Ending:
    """The activation with which the linear of gate and up ends."""

    activation: str
    alpha: float = 0.0
    """Of "limited", as is `limit`."""
    limit: float = 0.0


def moe_linear(
    x: Operand,
    weights: tuple[Operand, ...],
    tables: Sorted,
    y: Operand,
    *,
    format: str,
    tile: Tile,
    gather: bool,
    bias: Operand | None = None,
    shares: Operand | None = None,
    ending: Ending | None = None,
    workspace: Operand | None = None,
    counters: Operand | None = None,
) -> KernelCall:
    """Rows in the order of `sort_rows`, with the tile's block_m, times their experts' weights -> y [rows, N].

    x is [tokens, K] with `gather` (the first linear of the experts), else [rows, K]. Weights are the format's tensors
    in order, each [E, ...]; bias is [E, N]. With `shares` f32 [tokens, k] a product is multiplied by the share of its
    assignment. With an ending y is [rows, N / 2]: rows of the weights are one of gate, the same one of up. A tile with
    parts of K needs workspace f32 [splits, rows, N] and counters i32, zeros, one for each block of the result.

    Raises:
        ValueError: parts of K without a workspace and counters.
    """
    made, k = y.shape[-1], x.shape[-1]
    assert isinstance(made, int) and isinstance(k, int) and tile.block_m == tables.block_m
    n = 2 * made if ending else made
    # The weights of an expert with a token are read once.
    read = [tables.read(one.bytes) for one in (*weights, *([bias] if bias else []))]
    rows = {"assignment_of_row": tables.assignment_of_row, "expert_of_block": tables.expert_of_block}
    added = {"bias": bias, "shares": shares, "workspace": workspace, "counters": counters}
    fixed: dict[str, Constant] = {"CHOSEN": tables.chosen, "GATHER": gather, "ALPHA": None, "LIMIT": None}
    if ending is not None and ending.activation == "limited":
        fixed |= {"ALPHA": ending.alpha, "LIMIT": ending.limit}
    return linear_call(
        KERNEL,
        tile,
        {"x": x, **named(weights), "y": y, **rows, **added},
        {**constants_of(x, format, n, ending.activation if ending else None), **fixed},
        (-(-n // tile.block_n), tables.blocks, tile.splits),
        tokens=tables.tokens,
        bytes=total(*read, product(tables.expected, k * x.item_bytes + made * y.item_bytes)),
        operations=product(tables.expected, 2 * n * k),
    )


def _cases() -> Iterator[Case]:
    for spec in moe_cases.SPECS:
        yield moe_cases.case(moe_linear, Ending, spec)


def _calls(sm: int) -> Iterator[KernelCall]:
    return moe_cases.calls(moe_linear, Ending, sm)


SUITE = Suite((KERNEL,), _cases, _calls)
