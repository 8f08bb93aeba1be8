"""The end of a mixture-of-experts layer: the weighted sum of each token's rows, plus what every token has besides."""
# Triton's type stubs reject its loops.
# pyright: reportGeneralTypeIssues=false

from __future__ import annotations

from collections.abc import Iterator

import torch
import triton
import triton.language as tl

from ...call import ROUNDING, Case, Kernel, KernelCall, Operand, Suite, product, total
from ..linear.cases import torch_dtype
from .sort import Sorted, sorted_rows

BLOCK = 1024


@triton.jit
def opened(other, gate, token):
    """A row of `other` times the sigmoid of the token's gate, if there is one, in f32."""
    number = other.to(tl.float32)
    if gate is not None:
        number = number / (1.0 + tl.exp(-tl.load(gate + token).to(tl.float32)))
    return number


@triton.jit
def combine_kernel(
    rows, row_of_assignment, weights, other, gate, y, CHOSEN: tl.constexpr, WIDTH: tl.constexpr, BLOCK: tl.constexpr
):
    """rows [R, WIDTH], row_of_assignment i32 and weights f32 [tokens, CHOSEN] -> y [tokens, WIDTH].

    Plus other [tokens, WIDTH], times the sigmoid of gate [tokens, 1]. Experts are added in the order of the
    assignments; those that have no row here (-1) are left out. Without weights each is added as it is. Grid: tokens,
    blocks of columns.
    """
    token = tl.program_id(0).to(tl.int64)
    column = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = column < WIDTH
    acc = tl.zeros([BLOCK], tl.float32)
    for slot in tl.static_range(CHOSEN):
        row = tl.load(row_of_assignment + token * CHOSEN + slot).to(tl.int64)
        place = row * WIDTH + column  # below 0 for a row of -1
        number = tl.load(rows + place, inside & (place >= 0), 0.0).to(tl.float32)
        if weights is not None:
            number *= tl.load(weights + token * CHOSEN + slot)
        acc += number
    if other is not None:
        acc += opened(tl.load(other + token * WIDTH + column, inside, 0.0), gate, token)
    tl.store(y + token * WIDTH + column, acc.to(y.dtype.element_ty), inside)


@triton.jit
def gated_sum_kernel(x, other, gate, y, WIDTH: tl.constexpr, BLOCK: tl.constexpr):
    """x [tokens, WIDTH], if given, plus other [tokens, WIDTH] times the sigmoid of gate [tokens, 1] -> y."""
    token = tl.program_id(0).to(tl.int64)
    column = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = column < WIDTH
    number = opened(tl.load(other + token * WIDTH + column, inside, 0.0), gate, token)
    if x is not None:
        number += tl.load(x + token * WIDTH + column, inside, 0.0).to(tl.float32)
    tl.store(y + token * WIDTH + column, number.to(y.dtype.element_ty), inside)


KERNEL = Kernel("moe_combine", combine_kernel)
GATED_SUM = Kernel("moe_gated_sum", gated_sum_kernel)


def moe_combine(
    rows: Operand,
    tables: Sorted,
    y: Operand,
    *,
    weights: Operand | None,
    other: Operand | None = None,
    gate: Operand | None = None,
) -> KernelCall:
    """rows [R, H] of the experts in the order of `sort_rows`, times the weights of `route` -> y [tokens, H].

    With weights None they are added as they are. `other` [tokens, H] is added, times the sigmoid of gate f32
    [tokens, 1] if there is one.
    """
    tokens, width = y.shape
    assert isinstance(width, int) and (gate is None or other is not None)
    given = {"weights": weights, "other": other, "gate": gate}
    read = [o.bytes for o in (tables.row_of_assignment, y, *given.values()) if o is not None]
    return KernelCall(
        KERNEL,
        {
            **{"rows": rows, "row_of_assignment": tables.row_of_assignment, "y": y},
            **{name: one for name, one in given.items() if one is not None},
        },
        {
            **dict.fromkeys(name for name, one in given.items() if one is None),
            **{"CHOSEN": tables.chosen, "WIDTH": width, "BLOCK": BLOCK},
        },
        (tokens, -(-width // BLOCK)),
        writes=("y",),
        bytes=total(*read, product(tables.expected, width * rows.item_bytes)),
        operations=product(tables.expected, 2 * width),
    )


def gated_sum(x: Operand | None, other: Operand, gate: Operand, y: Operand) -> KernelCall:
    """x [tokens, H], or 0, plus other [tokens, H] times the sigmoid of gate f32 [tokens, 1] -> y [tokens, H]."""
    tokens, width = y.shape
    assert isinstance(width, int)
    return KernelCall(
        GATED_SUM,
        {**({} if x is None else {"x": x}), "other": other, "gate": gate, "y": y},
        {**({"x": None} if x is None else {}), "WIDTH": width, "BLOCK": BLOCK},
        (tokens, -(-width // BLOCK)),
        writes=("y",),
        bytes=total(*(o.bytes for o in (x, other, gate, y) if o is not None)),
        operations=product(tokens, 3 * width),
    )


def _tables(experts: int, chosen: int, block_m: int) -> Sorted:
    return Sorted.made(Operand.of, "tokens", experts, chosen, block_m)


def _of_rows(name: str, dtype: str, width: int) -> Operand:
    return Operand(name, dtype, ("tokens", width))


def _cases() -> Iterator[Case]:
    random = torch.Generator().manual_seed(5)
    for tokens, experts, chosen, width, dtype, act, begin, weighted, more in (
        (1, 8, 2, 1500, "bf16", "bf16", 0, True, ("other",)),
        (33, 5, 4, 96, "f32", "f16", 0, True, ()),
        (17, 32, 8, 64, "f16", "f16", 0, True, ("other", "gate")),
        (3, 4, 1, 1024, "bf16", "bf16", 0, False, ()),
        (17, 4, 3, 64, "bf16", "bf16", 4, True, ("other", "gate")),
    ):
        choices = torch.rand(tokens, begin + experts, generator=random).argsort(dim=1)[:, :chosen]
        tables = sorted_rows(choices, experts, 16, begin)
        real = tables["assignment_of_row"] >= 0
        rows = torch.randn(len(real), width, generator=random).to(torch_dtype(dtype))
        rows[~real] = float("nan")
        place = tables["row_of_assignment"]
        inputs = {"rows": rows, "row_of_assignment": place}
        found = rows[place].double().masked_fill((place < 0)[:, :, None], 0.0)
        if weighted:
            inputs["weights"] = torch.rand(tokens, chosen, generator=random)
            found = found * inputs["weights"].double()[:, :, None]
        expected = found.sum(dim=1)
        other, gate = _of_rows("other", act, width), _of_rows("gate", "f32", 1)
        if "other" in more:
            inputs["other"] = torch.randn(tokens, width, generator=random).to(torch_dtype(act))
            inputs |= {"gate": torch.randn(tokens, 1, generator=random)} if "gate" in more else {}
            expected += inputs["other"].double() * (inputs["gate"].double().sigmoid() if "gate" in more else 1.0)
        of = _tables(experts, chosen, 16)
        call = moe_combine(
            Operand("rows", dtype, (of.assignment_of_row.shape[0], width)),
            of,
            _of_rows("y", act, width),
            weights=_of_rows("weights", "f32", chosen) if weighted else None,
            other=other if "other" in more else None,
            gate=gate if "gate" in more else None,
        )
        name = "-".join((f"{dtype}-{tokens}x{width}-{chosen}of{experts}", *more))
        yield Case(name, call, inputs, {"tokens": tokens}, {"y": expected}, ROUNDING[act])
    x, second = (torch.randn(3, 1500, generator=random).to(torch.bfloat16) for _ in range(2))
    gates = torch.randn(3, 1, generator=random)
    operands = (_of_rows("other", "bf16", 1500), _of_rows("gate", "f32", 1), _of_rows("y", "bf16", 1500))
    product_of, given = second.double() * gates.double().sigmoid(), {"other": second, "gate": gates}
    for name, first, inputs, expected in (
        ("gated", None, given, product_of),
        ("gated-sum", _of_rows("x", "bf16", 1500), {**given, "x": x}, x.double() + product_of),
    ):
        yield Case(name, gated_sum(first, *operands), inputs, {"tokens": 3}, {"y": expected}, ROUNDING["bf16"])


def _calls(sm: int) -> Iterator[KernelCall]:
    for experts, chosen, width, shared in ((8, 2, 4096, False), (128, 8, 2048, False), (512, 10, 2048, True)):
        tables = _tables(experts, chosen, 16)
        rows = Operand("rows", "bf16", (tables.assignment_of_row.shape[0], width))
        more = {"other": _of_rows("other", "bf16", width), "gate": _of_rows("gate", "f32", 1)} if shared else {}
        weights = _of_rows("weights", "f32", chosen)
        yield moe_combine(rows, tables, _of_rows("y", "bf16", width), weights=weights, **more)
    operands = (_of_rows("x", "bf16", 2048), _of_rows("other", "bf16", 2048), _of_rows("gate", "f32", 1))
    yield gated_sum(*operands, _of_rows("y", "bf16", 2048))


SUITE = Suite((KERNEL, GATED_SUM), _cases, _calls)
