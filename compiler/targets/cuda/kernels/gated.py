"""act(gate) * up over the output of the merged gate|up linear: activations are read once and written once."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
import triton
import triton.language as tl

from ..call import ROUNDING, Case, Kernel, KernelCall, Operand, Suite, product, total
from .fp8 import LARGEST, LEAST, MINIMUM_SM, scale_of, to_e4m3

REFERENCE: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "silu": lambda x: torch.nn.functional.silu(x),
    "gelu": lambda x: torch.nn.functional.gelu(x),
    "gelu_pytorch_tanh": lambda x: torch.nn.functional.gelu(x, approximate="tanh"),
    "relu": lambda x: torch.relu(x),
}
"""The reference of `activate`. A process that only compiles loads no torch, so torch is used only inside functions."""


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
        y = tl.maximum(x, 0.0, propagate_nan=tl.PropagateNan.ALL)
    return y


@triton.jit
def gated_kernel(x, y, WIDTH: tl.constexpr, ACTIVATION: tl.constexpr, BLOCK: tl.constexpr):
    """x [tokens, 2 * WIDTH], gate then up -> y [tokens, WIDTH]. Grid: tokens, blocks of columns."""
    token = tl.program_id(0).to(tl.int64)
    column = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = column < WIDTH
    gate = tl.load(x + token * 2 * WIDTH + column, inside, 0.0).to(tl.float32)
    up = tl.load(x + token * 2 * WIDTH + WIDTH + column, inside, 0.0).to(tl.float32)
    tl.store(y + token * WIDTH + column, (activate(gate, ACTIVATION) * up).to(y.dtype.element_ty), inside)


@triton.jit
def gated_fp8_kernel(x, y, scales, WIDTH: tl.constexpr, ACTIVATION: tl.constexpr, BLOCK: tl.constexpr):
    """x [tokens, 2 * WIDTH], gate then up -> y u8 [tokens, WIDTH] (E4M3), scales f32 [tokens]. Grid: tokens."""
    token = tl.program_id(0).to(tl.int64)
    row = x + token * 2 * WIDTH
    largest = tl.zeros([BLOCK], tl.float32)
    for start in range(0, WIDTH, BLOCK):
        largest = tl.maximum(largest, tl.abs(_product(row, start, WIDTH, ACTIVATION, BLOCK)))
    scale = scale_of(tl.max(largest, axis=0))
    tl.store(scales + token, scale)
    for start in range(0, WIDTH, BLOCK):
        column = start + tl.arange(0, BLOCK)
        codes = to_e4m3(_product(row, start, WIDTH, ACTIVATION, BLOCK), scale)
        tl.store(y + token * WIDTH + column, codes, column < WIDTH)


@triton.jit
def _product(row, start, WIDTH: tl.constexpr, ACTIVATION: tl.constexpr, BLOCK: tl.constexpr):
    """act(gate) * up of BLOCK columns from `start` as f32; 0 past the row's end."""
    column = start + tl.arange(0, BLOCK)
    gate = tl.load(row + column, column < WIDTH, 0.0).to(tl.float32)
    up = tl.load(row + WIDTH + column, column < WIDTH, 0.0).to(tl.float32)
    return activate(gate, ACTIVATION) * up


KERNEL = Kernel("gated", gated_kernel)
FP8 = Kernel("gated_fp8", gated_fp8_kernel, MINIMUM_SM)


def gated(x: Operand, y: Operand, *, activation: str, scales: Operand | None = None) -> KernelCall:
    """x [tokens, 2 * I] -> y [tokens, I], both bf16 or f16.

    With scales f32 [tokens], y is u8: the codes that `quantize_activations` would give for the f32 result.
    """
    tokens, width = y.shape
    assert isinstance(width, int)
    if scales is not None:
        return KernelCall(
            FP8,
            {"x": x, "y": y, "scales": scales},
            {"WIDTH": width, "ACTIVATION": activation, "BLOCK": 2048},
            (tokens,),
            writes=("y", "scales"),
            bytes=total(x.bytes, y.bytes, scales.bytes),
            operations=product(tokens, 10 * width),
            warps=8,
        )
    block = 1024
    return KernelCall(
        KERNEL,
        {"x": x, "y": y},
        {"WIDTH": width, "ACTIVATION": activation, "BLOCK": block},
        (tokens, -(-width // block)),
        writes=("y",),
        bytes=total(x.bytes, y.bytes),
        operations=product(tokens, 8 * width),
    )


def _cases() -> Iterator[Case]:
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
        expected = REFERENCE[activation](gate) * up
        yield Case(
            f"{activation}-{dtype}-{tokens}x{width}",
            call,
            {"x": x},
            {"tokens": tokens},
            {"y": expected},
            ROUNDING[dtype],
        )
        scale = expected.abs().amax(1).clamp(min=LEAST) / LARGEST
        codes = (expected / scale[:, None]).to(torch.float8_e4m3fn).view(torch.uint8)
        call = gated(
            Operand("x", dtype, ("tokens", 2 * width)),
            Operand("y", "u8", ("tokens", width)),
            activation=activation,
            scales=Operand("scales", "f32", ("tokens",)),
        )
        # Neighbours in E4M3 are neighbours as bits: float32 rounding may move a code by 1 of 254.
        outcome = {"y": codes, "scales": scale}
        yield Case(f"{activation}-fp8-{tokens}x{width}", call, {"x": x}, {"tokens": tokens}, outcome, 2**-7)


def _calls(sm: int) -> Iterator[KernelCall]:
    yield gated(Operand("x", "bf16", ("tokens", 28672)), Operand("y", "bf16", ("tokens", 14336)), activation="silu")
    if sm >= MINIMUM_SM:
        y, scales = Operand("y", "u8", ("tokens", 14336)), Operand("scales", "f32", ("tokens",))
        yield gated(Operand("x", "bf16", ("tokens", 28672)), y, activation="silu", scales=scales)


SUITE = Suite((KERNEL, FP8), _cases, _calls)
