"""act(gate) * up over the merged product of the gate and up linears: one read and one write of the activations."""

from __future__ import annotations

from collections.abc import Iterator

import torch
import triton
import triton.language as tl

from ..kernel import ROUNDING, Call, Case, Kernel, Operand, Suite, product, total

ACTIVATIONS = ("silu", "gelu", "gelu_pytorch_tanh", "relu")


@triton.jit
def activate(x, ACTIVATION: tl.constexpr):
    """The activation function of float32 x."""
    if ACTIVATION == "silu":
        y = x / (1.0 + tl.exp(-x))
    elif ACTIVATION == "gelu":
        y = 0.5 * x * (1.0 + tl.erf(x * 0.7071067811865476))
    elif ACTIVATION == "gelu_pytorch_tanh":
        inner = 0.7978845608028654 * (x + 0.044715 * x * x * x)
        y = x / (1.0 + tl.exp(-2.0 * inner))
    else:
        y = tl.maximum(x, 0.0)
    return y


@triton.jit
def gated_kernel(x, y, WIDTH: tl.constexpr, ACTIVATION: tl.constexpr, BLOCK: tl.constexpr):
    """x [tokens, 2 * WIDTH] gate then up -> y [tokens, WIDTH]."""
    token = tl.program_id(0).to(tl.int64)
    column = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = column < WIDTH
    gate = tl.load(x + token * 2 * WIDTH + column, inside, 0.0).to(tl.float32)
    up = tl.load(x + token * 2 * WIDTH + WIDTH + column, inside, 0.0).to(tl.float32)
    tl.store(y + token * WIDTH + column, (activate(gate, ACTIVATION) * up).to(y.dtype.element_ty), inside)


KERNEL = Kernel("gated", gated_kernel)


def gated(x: Operand, y: Operand, *, activation: str) -> Call:
    """x [tokens, 2I] -> y [tokens, I], both bf16 or f16; I is any number."""
    tokens, width = y.shape
    assert isinstance(width, int)
    block = 1024
    return Call(
        KERNEL,
        {"x": x, "y": y},
        {"WIDTH": width, "ACTIVATION": activation, "BLOCK": block},
        (tokens, -(-width // block)),
        writes=("y",),
        bytes=total(x.bytes, y.bytes),
        operations=product(tokens, 8 * width),
    )


def _cases() -> Iterator[Case]:
    functions = {
        "silu": torch.nn.functional.silu,
        "gelu": torch.nn.functional.gelu,
        "gelu_pytorch_tanh": lambda t: torch.nn.functional.gelu(t, approximate="tanh"),
        "relu": torch.relu,
    }
    for activation, tokens, width, dtype in (
        ("silu", 3, 1500, "bf16"),
        ("gelu", 1, 96, "f16"),
        ("gelu_pytorch_tanh", 33, 64, "bf16"),
        ("relu", 2, 1024, "bf16"),
    ):
        kind = {"bf16": torch.bfloat16, "f16": torch.float16}[dtype]
        x = torch.randn(tokens, 2 * width, generator=torch.Generator().manual_seed(1)).to(kind)
        gate, up = x.float().chunk(2, dim=1)
        call = gated(
            Operand("x", dtype, ("tokens", 2 * width)), Operand("y", dtype, ("tokens", width)), activation=activation
        )
        expected = functions[activation](gate) * up
        yield Case(
            f"{activation}-{dtype}-{tokens}x{width}",
            call,
            {"x": x},
            {"tokens": tokens},
            {"y": expected},
            ROUNDING[dtype],
        )


def _calls(sm: int) -> Iterator[Call]:
    yield gated(Operand("x", "bf16", ("tokens", 28672)), Operand("y", "bf16", ("tokens", 14336)), activation="silu")


SUITE = Suite((KERNEL,), _cases, _calls)
