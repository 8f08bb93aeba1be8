"""Shared by the linears: sums over K for every weight format, the epilogue, the sum over parts of K."""

# Triton's type stubs reject plain numbers as constexprs, and its loops.
# pyright: reportArgumentType=false, reportGeneralTypeIssues=false

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import triton
import triton.language as tl

from ....call import Argument, Constant, Kernel, KernelCall, Operand, product, total
from ..dequantize import (
    GROUP,
    PER_WORD,
    epilogue_factor,
)
from ..tiles import Tile, default_tile


@triton.jit
def dot(a, b, acc, EMULATE: tl.constexpr):
    """acc + a @ b in f32; the operands are cast for the interpreter, which has no bf16 arithmetic."""
    if EMULATE:
        acc += tl.dot(a.to(tl.float32), b.to(tl.float32), input_precision="ieee")
    else:
        acc = tl.dot(a, b, acc)
    return acc


@triton.jit
def scale_sum(acc, scale, tensor_scale, row, FORMAT: tl.constexpr, FACTOR: tl.constexpr):
    """Multiply a `quantized_sum` by FACTOR and by the scales of rows or of the tensor."""
    if FORMAT == "fp8":
        acc *= (tl.load(scale + row) * FACTOR)[:, None]
    elif FORMAT == "nvfp4":
        acc *= tl.load(tensor_scale) * FACTOR
    elif FACTOR != 1.0:
        acc *= FACTOR
    return acc


@triton.jit
def add_bias(acc, row, bias, N: tl.constexpr):
    """The sum [rows, tokens] plus bias [N] if there is one."""
    if bias is not None:
        acc += tl.load(bias + row, row < N, 0.0).to(tl.float32)[:, None]
    return acc


@triton.jit
def finish(acc, row, token, inside, bias, residual, y, N: tl.constexpr):
    """Add bias [N] and residual [tokens, N] to the sum [rows, tokens], store it into y [tokens, N] where `inside`, and
    return it."""
    address = token[None, :].to(tl.int64) * N + row[:, None]
    acc = add_bias(acc, row, bias, N)
    if residual is not None:
        acc += tl.load(residual + address, inside, 0.0).to(tl.float32)
    tl.store(y + address, acc.to(y.dtype.element_ty), inside)
    return acc


@triton.jit
def comes_last(counter, PARTS: tl.constexpr):
    """Ticket counter (acquire-release): True in the last of PARTS programs, when all partial sums are visible.

    counter i32 is 0 between launches.
    """
    tl.debug_barrier()
    last = tl.atomic_add(counter, 1, sem="acq_rel", scope="gpu") == PARTS - 1
    if last:
        tl.store(counter, 0)
    return last


@triton.jit
def gather_parts(
    acc, row, token, inside, workspace, counters, block, part, tokens, N: tl.constexpr, SPLITS: tl.constexpr
):
    """Store this part's sum in workspace f32 [SPLITS, tokens, N]; the last program gets (sum of all parts, True).

    counters i32 [blocks] are 0 between launches.
    """
    address = token[None, :].to(tl.int64) * N + row[:, None]
    size = tokens.to(tl.int64) * N
    tl.store(workspace + part * size + address, acc, inside)
    last = comes_last(counters + block, SPLITS)
    if last:
        acc = tl.zeros_like(acc)
        for other in range(SPLITS):
            acc += tl.load(workspace + other * size + address, inside, 0.0, cache_modifier=".cg")
    return acc, last


def rows_of(y: Operand, activation: str | None) -> int:
    """N of the weight behind y [tokens, N], or [tokens, N / 2] with an activation: rows of gate and of up."""
    n = y.shape[-1]
    assert isinstance(n, int)
    return 2 * n if activation else n


def tile_for(kind: str, weights: tuple[Operand, ...], n: int, k: int, format: str, max_tokens: int, sm: int) -> Tile:
    """The tile of a linear without a measured one: `default_tile`, smaller for 32-bit weights."""
    tile = default_tile(kind, n, k, format, max_tokens, sm)
    if weights[0].dtype != "f32":
        return tile
    return replace(tile, block_k=tile.block_k // 2, block_m=128 if kind == "large" else tile.block_m)


def named(weights: tuple[Operand, ...]) -> dict[str, Operand | None]:
    """The tensors of a format by parameter; None if it has no such tensor."""
    return dict(zip(("w", "scale", "tensor_scale"), (*weights, None, None), strict=False))


def constants_of(x: Operand, format: str, n: int, activation: str | None = None) -> dict[str, Constant]:
    """The constants of a linear [n, K] that follow from the weight format and the activation."""
    return {
        "N": n,
        "K": x.shape[-1],
        "FORMAT": format,
        "PER_WORD": PER_WORD.get(format, 0),
        "GROUP": GROUP.get(format, 0),
        "FACTOR": epilogue_factor(format, x.dtype),
        "ACTIVATION": activation,
    }


def linear_call(
    kernel: Kernel,
    tile: Tile,
    operands: Mapping[str, Operand | None],
    constants: Mapping[str, Constant],
    grid: tuple[int | str, ...],
    *,
    tokens: int | str,
    bytes: str | None = None,
    operations: str | None = None,
) -> KernelCall:
    """The call of a linear [N, K]: `constants`, with the fields of the tile that the kernel takes.

    operands: by parameter, None for absent ones; workspace and counters are dropped if the tile has one part of K.
    bytes and operations default to every other operand once, and a product for every token.

    Raises:
        ValueError: parts of K without a workspace and counters, or a residual with an activation.
    """
    if constants.get("ACTIVATION") and operands.get("residual"):
        raise ValueError("a residual is added to what an activation was applied to")
    room, split = ("workspace", "counters"), tile.splits > 1
    if split and None in map(operands.get, room):
        raise ValueError(f"{kernel.name}: {tile.splits} parts of K need a workspace and counters")
    given = {name: one for name, one in operands.items() if one is not None and (split or name not in room)}
    n, k = constants["N"], constants["K"]
    assert isinstance(n, int) and isinstance(k, int)
    fixed = {
        **dict.fromkeys(operands),
        **constants,
        "BLOCK_N": tile.block_n,
        "BLOCK_M": tile.block_m,
        "BLOCK_K": tile.block_k,
        "SPLITS": tile.splits,
        "SPAN": tile.span(k),
        "WARPS": tile.warps,
        "STAGES": tile.stages,
    }
    sized: dict[str, Argument] = {"tokens": str(tokens)} if "tokens" in kernel.parameters else {}
    return KernelCall(
        kernel,
        {**given, **sized},
        {name: fixed[name] for name in kernel.parameters if name in fixed and name not in given},
        grid,
        writes=tuple(name for name in ("y", "normed", "squares", *room) if name in given),
        bytes=bytes or total(*(one.bytes for name, one in given.items() if name not in room)),
        operations=operations or product(tokens, 2 * n * k),
        warps=tile.warps,
        stages=tile.stages,
    )
