"""The end of a mixture-of-experts layer: the weighted sum of each token's rows, plus the residual."""
# Triton's type stubs reject its loops.
# pyright: reportGeneralTypeIssues=false

from __future__ import annotations

from collections.abc import Iterator

import torch
import triton
import triton.language as tl

from ...call import ROUNDING, Case, Kernel, KernelCall, Operand, Suite, product, total
from ..linear.cases import torch_dtype
from .sort import blocks_formula, sorted_rows

BLOCK = 1024


@triton.jit
def combine_kernel(
    rows, row_of_assignment, weights, residual, y, CHOSEN: tl.constexpr, WIDTH: tl.constexpr, BLOCK: tl.constexpr
):
    """rows [R, WIDTH], row_of_assignment i32 and weights f32 [tokens, CHOSEN] -> y [tokens, WIDTH], plus residual.

    Experts are added in the order of the assignments. Grid: tokens, blocks of columns.
    """
    token = tl.program_id(0).to(tl.int64)
    column = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = column < WIDTH
    acc = tl.zeros([BLOCK], tl.float32)
    for slot in tl.static_range(CHOSEN):
        row = tl.load(row_of_assignment + token * CHOSEN + slot).to(tl.int64)
        weight = tl.load(weights + token * CHOSEN + slot)
        acc += weight * tl.load(rows + row * WIDTH + column, inside, 0.0).to(tl.float32)
    if residual is not None:
        acc += tl.load(residual + token * WIDTH + column, inside, 0.0).to(tl.float32)
    tl.store(y + token * WIDTH + column, acc.to(y.dtype.element_ty), inside)


KERNEL = Kernel("moe_combine", combine_kernel)


def moe_combine(
    rows: Operand, row_of_assignment: Operand, weights: Operand, y: Operand, *, residual: Operand | None = None
) -> KernelCall:
    """rows [R, H] of the experts in the order of `sort_rows`, and the weights of `route` -> y [tokens, H]."""
    tokens, width = y.shape
    chosen = weights.shape[-1]
    assert isinstance(width, int) and isinstance(chosen, int)
    arguments = {"rows": rows, "row_of_assignment": row_of_assignment, "weights": weights, "y": y}
    read = [o.bytes for o in (row_of_assignment, weights, y, residual) if o is not None]
    return KernelCall(
        KERNEL,
        {**arguments, **({} if residual is None else {"residual": residual})},
        {**({"residual": None} if residual is None else {}), "CHOSEN": chosen, "WIDTH": width, "BLOCK": BLOCK},
        (tokens, -(-width // BLOCK)),
        writes=("y",),
        bytes=total(*read, product(tokens, chosen * width * (4 if rows.dtype == "f32" else 2))),
        operations=product(tokens, 2 * chosen * width),
    )


def _call(experts: int, chosen: int, width: int, block_m: int, dtype: str, act: str, residual: bool) -> KernelCall:
    count = product(blocks_formula(experts, chosen, block_m), block_m)
    return moe_combine(
        Operand("rows", dtype, (count, width)),
        Operand("row_of_assignment", "i32", ("tokens", chosen)),
        Operand("weights", "f32", ("tokens", chosen)),
        Operand("y", act, ("tokens", width)),
        residual=Operand("residual", act, ("tokens", width)) if residual else None,
    )


def _cases() -> Iterator[Case]:
    random = torch.Generator().manual_seed(5)
    for tokens, experts, chosen, width, dtype, act, residual in (
        (1, 8, 2, 1500, "bf16", "bf16", True),
        (33, 5, 4, 96, "f32", "f16", False),
        (17, 32, 8, 64, "f16", "f16", True),
        (3, 4, 1, 1024, "bf16", "bf16", False),
    ):
        choices = torch.rand(tokens, experts, generator=random).argsort(dim=1)[:, :chosen]
        tables = sorted_rows(choices, experts, 16)
        real = tables["token_of_row"] >= 0
        rows = torch.randn(len(real), width, generator=random).to(torch_dtype(dtype))
        rows[~real] = float("nan")
        place = tables["row_of_assignment"]
        inputs = {"rows": rows, "row_of_assignment": place, "weights": torch.rand(tokens, chosen, generator=random)}
        expected = (rows[place].double() * inputs["weights"].double()[:, :, None]).sum(dim=1)
        if residual:
            inputs["residual"] = torch.randn(tokens, width, generator=random).to(torch_dtype(act))
            expected += inputs["residual"].double()
        call = _call(experts, chosen, width, 16, dtype, act, residual)
        name = f"{dtype}-{tokens}x{width}-{chosen}of{experts}"
        yield Case(name, call, inputs, {"tokens": tokens}, {"y": expected}, ROUNDING[act])


def _calls(sm: int) -> Iterator[KernelCall]:
    yield _call(8, 2, 4096, 16, "bf16", "bf16", True)
    yield _call(32, 4, 2880, 16, "bf16", "bf16", True)


SUITE = Suite((KERNEL,), _cases, _calls)
