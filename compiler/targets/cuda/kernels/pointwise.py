"""Operators on single elements that no other kernel computes: activations, factors, a cap, a product."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import torch
import triton
import triton.language as tl

from ..call import ROUNDING, Case, Kernel, KernelCall, Operand, Suite, product, total
from .gated import REFERENCE, activate

BLOCK = 1024
PARAMETERS = ("alpha_p", "alpha_n", "beta", "eps")
"""Of xIELU."""


@triton.jit
def softplus(x):
    """log(1 + exp(x)) of a scalar, in float32."""
    x = x.to(tl.float32)
    return tl.maximum(x, 0.0) + tl.log(1.0 + tl.exp(-tl.abs(x)))


@triton.jit
def pointwise_kernel(
    x,
    times,
    scalar,
    alpha_p,
    alpha_n,
    beta,
    eps,
    y,
    WIDTH: tl.constexpr,
    ACTIVATION: tl.constexpr,
    FACTOR: tl.constexpr,
    CAP: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """x [rows, WIDTH] -> y [rows, WIDTH]: ACTIVATION, times FACTOR, capped to CAP * tanh(x / CAP), times the one number
    of scalar, times the elements of times [rows, WIDTH]; each if it is given. Grid: rows, blocks of columns.

    relu2: arXiv 2109.08668; xielu: arXiv 2411.13010, whose parameters are tensors of one number.
    """
    column = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = column < WIDTH
    at = tl.program_id(0).to(tl.int64) * WIDTH + column
    number = tl.load(x + at, inside, 0.0).to(tl.float32)
    if ACTIVATION == "xielu":
        slope = tl.load(beta).to(tl.float32)
        above = number * number * softplus(tl.load(alpha_p))
        bend = tl.exp(tl.minimum(number, tl.load(eps).to(tl.float32))) - 1.0 - number
        number = slope * number + tl.where(number > 0.0, above, bend * (slope + softplus(tl.load(alpha_n))))
    elif ACTIVATION == "relu2":
        number = tl.maximum(number, 0.0, propagate_nan=tl.PropagateNan.ALL)
        number = number * number
    elif ACTIVATION is not None:
        number = activate(number, ACTIVATION)
    if FACTOR is not None:
        number = number * FACTOR
    if CAP is not None:
        small = tl.exp(tl.abs(number) * (-2.0 / CAP))
        bent = CAP * (1.0 - small) / (1.0 + small)
        number = tl.where(number < 0.0, -bent, bent)
    if scalar is not None:
        number = number * tl.load(scalar).to(tl.float32)
    if times is not None:
        number = number * tl.load(times + at, inside, 0.0).to(tl.float32)
    tl.store(y + at, number.to(y.dtype.element_ty), inside)


KERNEL = Kernel("pointwise", pointwise_kernel)


def activation(x: Operand, y: Operand, name: str, parameters: tuple[Operand, ...] = ()) -> KernelCall:
    """An activation [rows, n] by its name in config.json; xielu has its `PARAMETERS`."""
    return _call(x, y, dict(zip(PARAMETERS, parameters, strict=False)), name=name)


def gated_by(x: Operand, times: Operand, y: Operand, name: str) -> KernelCall:
    """act(x) * times, all [rows, n]."""
    return _call(x, y, {"times": times}, name=name)


def scale(x: Operand, y: Operand, factor: float) -> KernelCall:
    """x * factor."""
    return _call(x, y, {}, factor=factor)


def softcap(x: Operand, y: Operand, cap: float) -> KernelCall:
    """cap * tanh(x / cap)."""
    return _call(x, y, {}, cap=cap)


def multiply(x: Operand, scalar: Operand, y: Operand) -> KernelCall:
    """x times the one number of a tensor."""
    return _call(x, y, {"scalar": scalar})


def _call(
    x: Operand,
    y: Operand,
    more: Mapping[str, Operand],
    *,
    name: str | None = None,
    factor: float | None = None,
    cap: float | None = None,
) -> KernelCall:
    rows, width = x.shape
    assert isinstance(width, int)
    absent = dict.fromkeys(one for one in ("times", "scalar", *PARAMETERS) if one not in more)
    return KernelCall(
        KERNEL,
        {"x": x, **more, "y": y},
        {**absent, "WIDTH": width, "ACTIVATION": name, "FACTOR": factor, "CAP": cap, "BLOCK": BLOCK},
        (rows, -(-width // BLOCK)),
        writes=("y",),
        bytes=total(x.bytes, y.bytes, *(one.bytes for one in more.values())),
        operations=product(rows, 4 * width),
    )


def _cases() -> Iterator[Case]:
    random = torch.Generator().manual_seed(8)
    x = (2 * torch.randn(3, 1500, generator=random)).to(torch.bfloat16)
    other = torch.randn(3, 1500, generator=random).to(torch.bfloat16)
    of_x, times, y = (Operand(name, "bf16", ("tokens", 1500)) for name in ("x", "times", "y"))
    one = Operand("scalar", "bf16", (1,))
    number = x.float()
    scalars = {name: torch.tensor([value]) for name, value in zip(PARAMETERS, (0.3, -0.2, 0.5, -1e-6), strict=True)}
    single = tuple(Operand(name, "f32", (1,)) for name in PARAMETERS)
    for name, made in REFERENCE.items():
        yield Case(name, activation(of_x, y, name), {"x": x}, {"tokens": 3}, {"y": made(number)}, ROUNDING["bf16"])
    squared = torch.relu(number).square()
    for name, call, more, expected in (
        ("relu2", activation(of_x, y, "relu2"), {}, squared),
        ("xielu", activation(of_x, y, "xielu", single), scalars, _xielu(number, *scalars.values())),
        ("gated", gated_by(of_x, times, y, "silu"), {"times": other}, REFERENCE["silu"](number) * other.float()),
        ("scale", scale(of_x, y, 0.22), {}, number * 0.22),
        ("scalar", multiply(of_x, one, y), {"scalar": torch.tensor([0.75]).to(torch.bfloat16)}, number * 0.75),
    ):
        yield Case(name, call, {"x": x, **more}, {"tokens": 3}, {"y": expected}, ROUNDING["bf16"])
    logits = 40 * torch.randn(2, 70, generator=random)
    given = (Operand(name, "f32", ("rows", 70)) for name in "xy")
    expected = 30 * (logits / 30).tanh()
    yield Case("softcap", softcap(*given, cap=30.0), {"x": logits}, {"rows": 2}, {"y": expected}, 8 * ROUNDING["f32"])


def _xielu(x: torch.Tensor, *parameters: torch.Tensor) -> torch.Tensor:
    alpha_p, alpha_n, beta, eps = parameters
    plus = torch.nn.functional.softplus
    below = (torch.expm1(torch.minimum(x, eps)) - x) * (beta + plus(alpha_n))
    return torch.where(x > 0, plus(alpha_p) * x * x, below) + beta * x


def _calls(sm: int) -> Iterator[KernelCall]:
    x, y = (Operand(name, "bf16", ("tokens", 14336)) for name in "xy")
    yield activation(x, y, "gelu")
    logits = (Operand(name, "f32", ("rows", 128256)) for name in "xy")
    yield softcap(*logits, cap=30.0)


SUITE = Suite((KERNEL,), _cases, _calls)
