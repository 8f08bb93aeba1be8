"""Columns of activations between ranks: a sum that no norm follows, and rows cut into parts or joined from them.

NCCL gathers and scatters equal, contiguous parts. So parts of `WIDTH` columns lie one after the other, each with room
for the widest of them: part i has its rows side by side at i * rows * WIDEST. The larger parts come first
(`passes/partition.py`, spans).
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
import triton
import triton.language as tl

from ..call import ROUNDING, Case, Kernel, KernelCall, Operand, Suite, product, total

BLOCK = 1024


@triton.jit
def add_kernel(x, other, y, start, WIDTH: tl.constexpr, STRIDE: tl.constexpr, BLOCK: tl.constexpr):
    """x [rows, WIDTH] + the columns of other [rows, STRIDE] from start on -> y [rows, WIDTH]; STRIDE 0: one row.

    Without x, y is these columns.
    """
    row = tl.program_id(0).to(tl.int64)
    column = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = column < WIDTH
    number = tl.load(other + row * STRIDE + start + column, inside, 0.0).to(tl.float32)
    if x is not None:
        number += tl.load(x + row * WIDTH + column, inside, 0.0).to(tl.float32)
    tl.store(y + row * WIDTH + column, number.to(y.dtype.element_ty), inside)


@triton.jit
def move_columns_kernel(
    whole, parts, rows, WIDTH: tl.constexpr, PARTS: tl.constexpr, JOIN: tl.constexpr, BLOCK: tl.constexpr
):
    """whole [rows, WIDTH] -> parts [PARTS, rows, WIDEST], or back with JOIN."""
    row = tl.program_id(0).to(tl.int64)
    column = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = column < WIDTH
    EACH: tl.constexpr = WIDTH // PARTS
    LARGER: tl.constexpr = WIDTH % PARTS
    WIDEST: tl.constexpr = (WIDTH + PARTS - 1) // PARTS
    border = LARGER * WIDEST
    large = column < border
    size = tl.where(large, WIDEST, EACH)
    begun = tl.where(large, column, column - border)
    part = tl.where(large, 0, LARGER) + begun // size
    at = (part * rows.to(tl.int64)) * WIDEST + row * size + begun % size
    if JOIN:
        tl.store(whole + row * WIDTH + column, tl.load(parts + at, inside, 0.0), inside)
    else:
        tl.store(parts + at, tl.load(whole + row * WIDTH + column, inside, 0.0), inside)


ADD = Kernel("add", add_kernel)
MOVE = Kernel("move_columns", move_columns_kernel)


def add(x: Operand | None, other: Operand, y: Operand, *, start: int = 0) -> KernelCall:
    """x [rows, n] + other -> y [rows, n]; other: columns from `start` on of [rows, N], or a row [n]. x None: 0."""
    rows, width = y.shape
    assert isinstance(width, int)
    stride = other.shape[1] if len(other.shape) == 2 else 0
    assert isinstance(stride, int)
    return KernelCall(
        ADD,
        {**({} if x is None else {"x": x}), "other": other, "y": y, "start": start},
        {**({"x": None} if x is None else {}), "WIDTH": width, "STRIDE": stride, "BLOCK": BLOCK},
        (rows, -(-width // BLOCK)),
        writes=("y",),
        bytes=total(
            *([] if x is None else [x.bytes]), product(rows if stride else 1, width, other.item_bytes), y.bytes
        ),
        operations=product(rows, width),
    )


def split_columns(whole: Operand, parts: Operand) -> KernelCall:
    """whole [rows, n] -> parts [P, rows, widest], of the n columns cut into P."""
    return _move(whole, parts, join=False)


def join_columns(parts: Operand, whole: Operand) -> KernelCall:
    """parts [P, rows, widest] -> whole [rows, n], of the n columns cut into P."""
    return _move(whole, parts, join=True)


def _move(whole: Operand, parts: Operand, *, join: bool) -> KernelCall:
    (rows, width), count = whole.shape, parts.shape[0]
    assert isinstance(width, int) and isinstance(count, int)
    assert isinstance(rows, str) and parts.shape[1:] == (rows, -(-width // count))
    return KernelCall(
        MOVE,
        {"whole": whole, "parts": parts, "rows": rows},
        {"WIDTH": width, "PARTS": count, "JOIN": join, "BLOCK": BLOCK},
        (rows, -(-width // BLOCK)),
        writes=("whole",) if join else ("parts",),
        bytes=total(whole.bytes, whole.bytes),
        operations=0,
    )


def _cases() -> Iterator[Case]:
    random = torch.Generator().manual_seed(4)
    x, wide = (torch.randn(3, width, generator=random).to(torch.bfloat16) for width in (40, 100))
    bias, sizes = torch.randn(40, generator=random), {"tokens": 3}
    given, y = Operand("x", "bf16", ("tokens", 40)), Operand("y", "bf16", ("tokens", 40))
    for name, call, other, expected in (
        ("columns", add(given, Operand("o", "bf16", ("tokens", 100)), y, start=60), wide, wide[:, 60:].float()),
        ("row", add(given, Operand("o", "f32", (40,)), y), bias, bias),
    ):
        yield Case(f"add-{name}", call, {"x": x, "o": other}, sizes, {"y": x.float() + expected}, ROUNDING["bf16"])
    call = add(None, Operand("o", "bf16", ("tokens", 100)), y, start=60)
    yield Case("columns", call, {"o": wide}, sizes, {"y": wide[:, 60:].float()}, 0.0)
    for dtype, kind, width, count in (("f32", torch.float32, 1030, 4), ("bf16", torch.bfloat16, 12, 3)):
        number = torch.randn(3, width, generator=random).to(kind)
        widest = -(-width // count)
        packed = torch.full((count, 3 * widest), float("nan"), dtype=kind)
        for part, columns in zip(packed, torch.tensor_split(number, count, dim=1), strict=True):
            part[: columns.numel()] = columns.reshape(-1)
        whole, parts = Operand("whole", dtype, ("rows", width)), Operand("parts", dtype, (count, "rows", widest))
        shaped = packed.reshape(count, 3, widest)
        name = f"{width}-in-{count}"
        yield Case(f"split-{name}", split_columns(whole, parts), {"whole": number}, {"rows": 3}, {"parts": shaped}, 0.0)
        yield Case(f"join-{name}", join_columns(parts, whole), {"parts": shaped}, {"rows": 3}, {"whole": number}, 0.0)


def _calls(sm: int) -> Iterator[KernelCall]:
    x = Operand("x", "bf16", ("tokens", 2048))
    yield add(x, Operand("residual", "bf16", ("tokens", 4096)), Operand("y", "bf16", ("tokens", 2048)), start=2048)
    whole, parts = Operand("x", "bf16", ("tokens", 4096)), Operand("parts", "bf16", (2, "tokens", 2048))
    yield split_columns(whole, parts)
    yield join_columns(Operand("parts", "f32", (2, "rows", 64128)), Operand("logits", "f32", ("rows", 128256)))


SUITE = Suite((ADD, MOVE), _cases, _calls)
