"""Linears of experts as one grouped product: every block of sorted rows is multiplied by its expert's weights."""

# Triton's type stubs reject plain numbers as constexprs.
# pyright: reportArgumentType=false

from __future__ import annotations

from collections.abc import Iterator

import triton
import triton.language as tl

from ...call import Case, Kernel, KernelCall, Operand, Suite, product, total
from ..linear.parts.common import constants_of, finish, gather_parts, linear_call, named, scale_sum
from ..linear.parts.sums import dense_sum, quantized_sum
from ..linear.tiles import Tile
from . import cases as moe_cases


@triton.jit
def moe_linear_kernel(
    x,
    w,
    scale,
    tensor_scale,
    token_of_row,
    expert_of_block,
    bias,
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
    GATHER: tl.constexpr,
    WARPS: tl.constexpr,
    STAGES: tl.constexpr,
    EMULATE: tl.constexpr,
):
    """Rows of x times their experts' weights [E, N, K] -> y [rows, N], plus bias [E, N]; padding rows are not written.

    With GATHER row r reads token token_of_row[r] of x [tokens, K], else row r of x [rows, K]. Grid: blocks of weight
    rows, blocks of rows, parts of K (SPAN columns each). A block whose expert is -1 has no rows.
    """
    EVEN: tl.constexpr = K % BLOCK_K == 0
    part = tl.program_id(2)
    expert = tl.load(expert_of_block + tl.program_id(1)).to(tl.int64)
    if expert >= 0:
        row = tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N)
        place = tl.program_id(1) * BLOCK_M + tl.arange(0, BLOCK_M)
        source = tl.load(token_of_row + place)
        # Experts' weights are stacked, so row n of expert e is row e * N + n of one weight.
        read_row = expert * N + (row if N % BLOCK_N == 0 else tl.minimum(row, N - 1))
        read_token = (tl.maximum(source, 0) if GATHER else place).to(tl.int64)
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
        inside = (source[None, :] >= 0) & (row[:, None] < N)
        own_bias = bias
        if bias is not None:
            own_bias = bias + expert * N
        if SPLITS == 1:
            finish(acc, row, place, inside, own_bias, None, y, N)
        else:
            rows = tl.num_programs(1) * BLOCK_M
            block = tl.program_id(1) * tl.num_programs(0) + tl.program_id(0)
            acc, last = gather_parts(acc, row, place, inside, workspace, counters, block, part, rows, N, SPLITS)
            if last:
                finish(acc, row, place, inside, own_bias, None, y, N)


KERNEL = Kernel("moe_linear", moe_linear_kernel)


def moe_linear(
    x: Operand,
    weights: tuple[Operand, ...],
    token_of_row: Operand,
    expert_of_block: Operand,
    y: Operand,
    *,
    format: str,
    chosen: int,
    tile: Tile,
    gather: bool,
    bias: Operand | None = None,
    workspace: Operand | None = None,
    counters: Operand | None = None,
) -> KernelCall:
    """Rows in the order of `sort_rows`, with the tile's block_m, times their experts' weights -> y [rows, N].

    x is [tokens, K] with `gather` (the first linear of the experts), else [rows, K]. Weights are the format's tensors
    in order, each [E, ...]; bias is [E, N]; `chosen` is the number of experts per token. A tile with parts of K needs
    workspace f32 [splits, rows, N] and counters i32, zeros, one for each block of the result.

    Raises:
        ValueError: parts of K without a workspace and counters.
    """
    n, k = y.shape[-1], x.shape[-1]
    experts = weights[0].shape[0]
    assert isinstance(n, int) and isinstance(k, int) and isinstance(experts, int)
    # The weights of an expert with a token are read once; there are at most as many as assignments.
    busy = f"min({experts}, tokens * {chosen})"
    read = [product(busy, f"({o.bytes}) // {experts}") for o in (*weights, *([bias] if bias else []))]
    (blocks,) = expert_of_block.shape
    rows = {"token_of_row": token_of_row, "expert_of_block": expert_of_block}
    added = {"bias": bias, "workspace": workspace, "counters": counters}
    return linear_call(
        KERNEL,
        tile,
        {"x": x, **named(weights), "y": y, **rows, **added},
        {**constants_of(x, format, n), "GATHER": gather},
        (-(-n // tile.block_n), blocks, tile.splits),
        tokens="tokens",
        bytes=total(*read, product("tokens", chosen, k * x.item_bytes + n * y.item_bytes)),
        operations=product("tokens", 2 * chosen * n * k),
    )


def _cases() -> Iterator[Case]:
    for spec in moe_cases.SPECS:
        yield moe_cases.case(moe_linear, spec)


def _calls(sm: int) -> Iterator[KernelCall]:
    for max_tokens in (1, 64, 2048):
        for format in ("dense", "fp8", "nvfp4"):
            yield from moe_cases.calls(moe_linear, moe_cases.MIXTRAL_8X7B, format, max_tokens, sm)
        yield from moe_cases.calls(moe_linear, moe_cases.GPT_OSS_20B, "mxfp4", max_tokens, sm)


SUITE = Suite((KERNEL,), _cases, _calls)
