"""Norms of parts of a row, by their root mean square or of a LayerNorm: of heads in q|k|v, or of a whole row."""

from __future__ import annotations

from collections.abc import Iterator

import torch
import triton
import triton.language as tl

from ..call import ROUNDING, Argument, Case, Kernel, KernelCall, Operand, Suite, next_power, product, total


@triton.jit
def head_norm_kernel(
    x,
    weight,
    bias,
    y,
    ROW: tl.constexpr,
    START: tl.constexpr,
    SIZE: tl.constexpr,
    EACH: tl.constexpr,
    CENTERED: tl.constexpr,
    EPSILON: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """x [tokens, ROW], weight [SIZE], or [heads, SIZE] with EACH, bias [SIZE] or None -> y [tokens, ROW], or x.

    Heads of SIZE columns begin at column START; of y nothing else is written. CENTERED: less their mean, as in Ba et
    al., "Layer normalization" (2016). Grid: tokens, heads.
    """
    head = tl.program_id(1)
    column = tl.arange(0, BLOCK)
    inside = column < SIZE
    at = tl.program_id(0).to(tl.int64) * ROW + START + head * SIZE + column
    number = tl.load(x + at, inside, 0.0).to(tl.float32)
    if CENTERED:
        number = tl.where(inside, number - tl.sum(number, axis=0) / SIZE, 0.0)
    factor = tl.load(weight + (head * SIZE if EACH else 0) + column, inside, 0.0).to(tl.float32)
    number = number / tl.sqrt(tl.sum(number * number, axis=0) / SIZE + EPSILON) * factor
    if bias is not None:
        number += tl.load(bias + column, inside, 0.0).to(tl.float32)
    tl.store(y + at, number.to(y.dtype.element_ty), inside)


KERNEL = Kernel("head_norm", head_norm_kernel)


def head_norm(
    x: Operand,
    weight: Operand,
    y: Operand,
    *,
    epsilon: float,
    bias: Operand | None = None,
    centered: bool = False,
    columns: tuple[int, int] | None = None,
) -> KernelCall:
    """The norm of each head in `columns` of x [tokens or rows, N], by default in all, -> y [tokens or rows, N].

    A head has the last dimension of the weight; a weight of two dimensions has a row for each head. y may be x, whose
    other columns stay as they are.
    """
    (tokens, row), size = x.shape, weight.shape[-1]
    start, stop = columns or (0, row)
    assert isinstance(row, int) and isinstance(size, int) and isinstance(stop, int)
    given: dict[str, Argument] = {"x": x, "weight": weight, "y": y, **({} if bias is None else {"bias": bias})}
    block = next_power(size)
    return KernelCall(
        KERNEL,
        given,
        {
            **({"bias": None} if bias is None else {}),
            "ROW": row,
            "START": start,
            "SIZE": size,
            "EACH": len(weight.shape) == 2,
            "CENTERED": centered,
            "EPSILON": epsilon,
            "BLOCK": block,
        },
        (tokens, (stop - start) // size),
        writes=("y",),
        bytes=total(product(tokens, stop - start, x.item_bytes + y.item_bytes), weight.bytes),
        operations=product(tokens, 5 * (stop - start)),
        warps=min(max(block // 512, 1), 16),
    )


def _cases() -> Iterator[Case]:
    random = torch.Generator().manual_seed(7)
    for tokens, row, columns, size, act, stored, has in (
        (3, 200, None, 200, "bf16", "bf16", ("centered", "bias")),
        (1, 96, None, 96, "f16", "f32", ("centered",)),
        (5, 96, (32, 80), 16, "bf16", "f32", ()),
        (2, 300, (0, 200), 200, "bf16", "bf16", ()),
        (3, 120, (40, 120), 40, "bf16", "bf16", ("centered", "each")),
        (3, 160, None, 80, "bf16", "bf16", ("centered", "bias")),
    ):
        kinds = {"bf16": torch.bfloat16, "f16": torch.float16, "f32": torch.float32}
        start, stop = columns or (0, row)
        heads = (stop - start) // size
        x = (torch.randn(tokens, row, generator=random) + 0.5).to(kinds[act])
        weight = torch.randn(*((heads,) if "each" in has else ()), size, generator=random).to(kinds[stored])
        bias = torch.randn(size, generator=random).to(kinds[stored]) if "bias" in has else None
        part = x.float()[:, start:stop].reshape(tokens, heads, size)
        if "centered" in has:
            part = part - part.mean(-1, keepdim=True)
        part = part / (part.square().mean(-1, keepdim=True) + 1e-5).sqrt() * weight.float()
        part = part if bias is None else part + bias.float()
        expected = x.float().clone()
        expected[:, start:stop] = part.reshape(tokens, -1)
        shape = ("tokens", row)
        of_x = Operand("x", act, shape)
        call = head_norm(
            of_x,
            Operand("weight", stored, tuple(weight.shape)),
            Operand("y", act, shape) if columns is None else of_x,
            epsilon=1e-5,
            bias=None if bias is None else Operand("bias", stored, (size,)),
            centered="centered" in has,
            columns=columns,
        )
        inputs = {"x": x, "weight": weight} | ({} if bias is None else {"bias": bias})
        name = "-".join((f"{tokens}x{row}-{size}-{act}-{stored}", *has, *(() if columns is None else ("part",))))
        written = "x" if columns else "y"
        yield Case(name, call, inputs, {"tokens": tokens}, {written: expected}, ROUNDING[act])


def _calls(sm: int) -> Iterator[KernelCall]:
    x, y = (Operand(name, "bf16", ("tokens", 4096)) for name in "xy")
    yield head_norm(x, Operand("weight", "bf16", (4096,)), y, epsilon=1e-5, centered=True)
    qkv = Operand("qkv", "bf16", ("tokens", 6144))
    yield head_norm(qkv, Operand("weight", "bf16", (128,)), qkv, epsilon=1e-5, columns=(0, 4096))


SUITE = Suite((KERNEL,), _cases, _calls)
