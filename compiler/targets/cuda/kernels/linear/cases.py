"""Cases and calls of the linears: small shapes with masked edges in every format, and shapes of Llama-3.1-8B."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch

from ......quantize import FORMATS as QUANTIZED
from ......runtime.dtypes import DTYPES, KERNEL_DTYPES
from ...call import ROUNDING, Case, KernelCall, Operand
from ..gated import REFERENCE
from .dequantize import PER_WORD
from .parts.fused import SQUARES, Fused
from .tiles import Tile, default_tile

FORMATS = ("dense", *QUANTIZED)
LLAMA_LAYERS = ((6144, 4096), (4096, 4096), (28672, 4096), (4096, 14336))
"""Weights [N, K] of q|k|v, o, gate|up and down of Llama-3.1-8B."""
GATE_UP = LLAMA_LAYERS[2]
HIDDEN = 4096


def torch_dtype(name: str) -> torch.dtype:
    """The torch dtype of a plan's dtype; not a table, because a process that only compiles loads no torch."""
    return getattr(torch, KERNEL_DTYPES[name].config)


@dataclass(frozen=True)
class LinearCase:
    """One case of a linear [n, k]; with an activation, n counts the rows of gate and of up."""

    format: str
    tokens: int
    n: int
    k: int
    act: str = "bf16"
    y: str = ""
    weight: str = "bf16"
    bias: bool = False
    residual: bool = False
    activation: str | None = None
    max_tokens: int = 16
    tile: Tile | None = None
    fused: bool = False
    """True: with all that neighbours can ask of it (`Fused`); a norm follows a residual."""


SMALL = (
    LinearCase("dense", 3, 40, 100, act="f16", weight="f16", bias=True, residual=True),
    LinearCase("dense", 33, 70, 256, y="f32", weight="f32", max_tokens=64),
    LinearCase("dense", 1, 130, 384, tile=Tile(64, 128, 16, 3, 4, 3)),
    LinearCase("fp8", 1, 40, 160, bias=True, tile=Tile(64, 128, 16, 1, 4, 3)),
    LinearCase("fp8", 3, 40, 67, act="f16", residual=True, tile=Tile(64, 64, 16, 1, 4, 1)),
    LinearCase("int4", 33, 70, 160, max_tokens=64, residual=True),
    LinearCase("int4", 3, 40, 320, act="f16", tile=Tile(64, 128, 16, 3, 4, 1)),
    LinearCase("int4-g128", 3, 40, 384, tile=Tile(64, 128, 16, 3, 4, 1), bias=True),
    LinearCase("int8", 3, 40, 160, act="f16", bias=True, residual=True),
    LinearCase("int8", 1, 70, 96),
    LinearCase("int8-g128", 2, 40, 256, tile=Tile(64, 128, 16, 1, 4, 3)),
    LinearCase("int8-g128", 17, 130, 128, act="f16"),
    LinearCase("nvfp4", 3, 70, 432, tile=Tile(64, 128, 16, 2, 4, 1), y="f32"),
    LinearCase("nvfp4", 33, 40, 144, act="f16", max_tokens=64, bias=True),
    LinearCase("mxfp4", 1, 40, 160, act="f16", residual=True),
    LinearCase("mxfp4", 3, 130, 256, tile=Tile(128, 256, 16, 1, 4, 2)),
    LinearCase("dense", 3, 134, 100, activation="silu", bias=True),
    LinearCase("dense", 33, 70, 384, activation="gelu_pytorch_tanh", max_tokens=64, tile=Tile(32, 128, 32, 3, 4, 3)),
    LinearCase("fp8", 33, 134, 160, activation="silu", bias=True, max_tokens=64),
    LinearCase(
        "int8", 3, 266, 320, act="f16", activation="gelu_pytorch_tanh", tile=Tile(128, 64, 16, 3, 4, 3), bias=True
    ),
    LinearCase("int8-g128", 1, 70, 256, activation="relu", tile=Tile(32, 64, 16, 1, 4, 1)),
    LinearCase("fp8", 3, 70, 160, activation="gelu"),
    LinearCase("int4", 1, 128, 320, activation="silu", tile=Tile(64, 128, 16, 3, 4, 1)),
    LinearCase("int4-g128", 33, 70, 384, act="f16", activation="silu", max_tokens=64, tile=Tile(64, 128, 64, 3, 4, 1)),
    LinearCase("nvfp4", 3, 134, 432, activation="gelu_pytorch_tanh", tile=Tile(64, 128, 16, 2, 4, 1)),
    LinearCase("mxfp4", 1, 70, 160, act="f16", activation="silu", bias=True),
    LinearCase("nvfp4", 3, 256, 512, residual=True, tile=Tile(64, 256, 16, 2, 2, 3), fused=True),
    LinearCase("nvfp4", 17, 256, 256, activation="silu", max_tokens=32, tile=Tile(64, 128, 32, 1, 2, 3), fused=True),
    LinearCase("mxfp4", 2, 70, 256, residual=True, tile=Tile(64, 256, 16, 1, 2, 3), fused=True),
    LinearCase(
        "int4", 33, 128, 256, residual=True, bias=True, max_tokens=64, tile=Tile(64, 128, 64, 2, 4, 3), fused=True
    ),
    LinearCase("int4-g128", 1, 256, 256, activation="silu", tile=Tile(64, 256, 16, 1, 2, 3), fused=True),
    LinearCase("int8", 3, 256, 256, activation="relu", tile=Tile(64, 128, 16, 2, 2, 3), fused=True),
    LinearCase("fp8", 3, 192, 384, residual=True, tile=Tile(64, 128, 16, 3, 2, 3), fused=True),
    LinearCase("dense", 3, 70, 1000, residual=True, tile=Tile(32, 64, 16, 1, 2, 4), fused=True),
)
_LARGE_TILE = Tile(64, 128, 32, 1, 4, 1)
LARGE = (
    LinearCase("dense", 33, 70, 100, act="f16", weight="f16", bias=True, residual=True, tile=Tile(64, 32, 16, 1, 4, 3)),
    LinearCase("dense", 3, 40, 64, weight="f32"),
    LinearCase("fp8", 33, 70, 96, tile=Tile(64, 64, 16, 1, 4, 1), residual=True),
    LinearCase("int4", 65, 200, 160, act="f16", tile=_LARGE_TILE),
    LinearCase("int4-g128", 33, 70, 256, y="f32", tile=_LARGE_TILE),
    LinearCase("int8", 33, 40, 96, tile=Tile(64, 64, 32, 1, 4, 1)),
    LinearCase("int8-g128", 1, 40, 128, bias=True, tile=Tile(64, 64, 32, 1, 4, 1)),
    LinearCase("nvfp4", 33, 70, 144, bias=True, tile=_LARGE_TILE),
    LinearCase("mxfp4", 33, 40, 160, act="f16"),
    LinearCase("dense", 33, 134, 100, activation="silu", bias=True, tile=Tile(64, 32, 16, 1, 4, 3)),
    LinearCase("fp8", 3, 134, 96, activation="gelu_pytorch_tanh", tile=Tile(128, 64, 16, 1, 4, 1)),
    LinearCase("dense", 33, 134, 100, activation="gelu", tile=Tile(64, 32, 16, 1, 4, 3)),
    LinearCase("int8", 33, 134, 96, activation="relu", tile=Tile(64, 64, 32, 1, 4, 1)),
    LinearCase("nvfp4", 65, 266, 144, activation="silu", tile=Tile(128, 128, 32, 1, 8, 1)),
    LinearCase("dense", 70, 140, 256, residual=True, max_tokens=256, tile=Tile(64, 64, 32, 2, 4, 4), fused=True),
    LinearCase("dense", 200, 70, 64, residual=True, max_tokens=256, tile=Tile(64, 64, 256, 1, 8, 3), fused=True),
    LinearCase("nvfp4", 65, 256, 256, activation="silu", max_tokens=128, tile=Tile(64, 128, 64, 2, 4, 1), fused=True),
)


def weight_operands(format: str, n: int, k: int, dense: str) -> tuple[Operand, ...]:
    """The tensors of a weight [n, k] in its format; "dense" is one tensor of dtype `dense`."""
    if format == "dense":
        return (Operand("weight", dense, (n, k)),)
    return tuple(Operand(c.name, DTYPES[c.dtype].kernel, c.shape) for c in QUANTIZED[format].components(n, k))


def case(build: Callable[..., KernelCall], spec: LinearCase) -> Case:
    """The case with its tensors; the expected output is the float64 product with the dequantized weights."""
    source = torch.Generator().manual_seed(spec.n * spec.k + spec.tokens)
    weight = torch.randn(spec.n, spec.k, generator=source) * 0.05
    inputs: dict[str, Any] = {}
    operands = weight_operands(spec.format, spec.n, spec.k, spec.weight)
    if spec.format == "dense":
        inputs["weight"] = weight.to(torch_dtype(spec.weight))
        exact = inputs["weight"].double()
    else:
        format = QUANTIZED[spec.format]
        parts = format.quantize(weight)
        exact = torch.from_numpy(format.dequantize(parts)).double()
        for operand in operands:
            array = torch.from_numpy(np.array(parts[operand.name]))
            inputs[operand.name] = array.view(torch.bfloat16) if operand.dtype == "bf16" else array
    x = torch.randn(spec.tokens, spec.k, generator=source).to(torch_dtype(spec.act))
    inputs["x"] = x
    expected = x.double() @ exact.T
    extra: dict[str, Any] = {}
    before = Fused()
    if spec.fused:
        before, inputs["x"], inputs["x_squares"], rms = _fused_input(spec, x, source)
        expected /= rms[:, None]
    if spec.bias:
        inputs["bias"] = torch.randn(spec.n, generator=source).to(torch_dtype(spec.act))
        extra["bias"] = Operand("bias", spec.act, (spec.n,))
        expected += inputs["bias"].double()
    if spec.residual:
        inputs["residual"] = torch.randn(spec.tokens, spec.n, generator=source).to(torch_dtype(spec.act))
        extra["residual"] = Operand("residual", spec.act, ("tokens", spec.n))
        expected += inputs["residual"].double()
    if spec.activation:
        extra["activation"] = spec.activation
        gate, up = expected.chunk(2, dim=1)
        expected = REFERENCE[spec.activation](gate) * up
    outcome = {"y": expected}
    if spec.fused:
        extra["fused"], more = _fused_output(spec, before, expected, source)
        inputs |= {name: more.pop(name) for name in ("norm_weight",) if name in more}
        outcome |= more
    if spec.tile is not None and spec.tile.splits > 1:
        count = -(-spec.n // spec.tile.block_n) * -(-spec.max_tokens // spec.tile.block_m)
        extra["workspace"] = Operand("workspace", "f32", (spec.tile.splits, "tokens", spec.n))
        extra["counters"] = Operand("counters", "i32", (count,))
        inputs["counters"] = torch.zeros(count, dtype=torch.int32)
        outcome["counters"] = inputs["counters"]
    dtype = spec.y or spec.act
    call = build(
        Operand("x", spec.act, ("tokens", spec.k)),
        operands,
        Operand("y", dtype, ("tokens", expected.shape[1])),
        format=spec.format,
        max_tokens=spec.max_tokens,
        sm=90,
        tile=spec.tile,
        **extra,
    )
    name = f"{spec.format}-{spec.activation or spec.act}-{spec.act}-{spec.tokens}x{spec.n}x{spec.k}"
    # Weights with a scale per group are rounded once more, to the act dtype.
    return Case(name, call, inputs, {"tokens": spec.tokens}, outcome, ROUNDING[dtype] + ROUNDING[spec.act] / 2)


def in_order(columns: torch.Tensor, order: int) -> torch.Tensor:
    """The columns [rows, K] in the order of `stored_column`."""
    if not order:
        return columns
    rows, k = columns.shape
    chunks = columns.reshape(rows, k // (16 * order), 4, 4, 2, order // 2)
    return chunks.permute(0, 1, 3, 5, 2, 4).reshape(rows, k)


def _order(spec: LinearCase, columns: int) -> int:
    order = PER_WORD.get(spec.format, 0) if spec.max_tokens <= 64 else 0
    return order if order and columns % (16 * order) == 0 else 0


def _fused_input(
    spec: LinearCase, x: torch.Tensor, source: torch.Generator
) -> tuple[Fused, torch.Tensor, torch.Tensor, torch.Tensor]:
    """(neighbours, x in order, sums of squares, root mean square of each token)."""
    squares = torch.rand(-(-spec.k // SQUARES), spec.tokens, generator=source) * SQUARES
    order = _order(spec, spec.k)
    fused = Fused(ordered=order > 0, x_squares=Operand("x_squares", "f32", (len(squares), "tokens")), epsilon=1e-3)
    return fused, in_order(x, order), squares, (squares.double().sum(0) / spec.k + 1e-3).sqrt()


def _fused_output(
    spec: LinearCase, fused: Fused, y: torch.Tensor, source: torch.Generator
) -> tuple[Fused, dict[str, torch.Tensor]]:
    """(neighbours, tensors of the norm that follows a residual, or y in order after an activation)."""
    tokens, n = y.shape
    order = _order(spec, n)
    if not spec.residual:
        return replace(fused, order=order), {"y": in_order(y, order)}
    weight = torch.randn(n, generator=source).to(torch_dtype(spec.act))
    parts = -(-n // SQUARES)
    padded = torch.zeros(tokens, parts * SQUARES, dtype=torch.float64)
    padded[:, :n] = y.square()
    operands = {
        "norm_weight": Operand("norm_weight", spec.act, (n,)),
        "normed": Operand("normed", spec.act, ("tokens", n)),
        "squares": Operand("squares", "f32", (parts, "tokens")),
    }
    found = {"norm_weight": weight, "normed": in_order(y * weight.double(), order)}
    return replace(fused, order=order, **operands), {**found, "squares": padded.reshape(tokens, parts, -1).sum(2).T}


def _neighbours(n: int, k: int, format: str, act: str, kind: str) -> Fused:
    """The neighbours of a linear of Llama: a norm before q|k|v, gate|up and the head, one after o and down."""
    order = PER_WORD.get(format, 0) if kind == "small" else 0
    if n != HIDDEN:
        return Fused(order > 0, Operand("x_squares", "f32", (k // SQUARES, "tokens")), 1e-5, order)
    return Fused(
        order > 0,
        order=order,
        norm_weight=Operand("norm_weight", act, (n,)),
        normed=Operand("normed", act, ("tokens", n)),
        squares=Operand("squares", "f32", (n // SQUARES, "tokens")),
    )


def model_call(
    build: Callable[..., KernelCall],
    n: int,
    k: int,
    format: str,
    act: str,
    max_tokens: int,
    sm: int,
    kind: str = "small",
    tile: Tile | None = None,
) -> KernelCall:
    """A call with a model's shape and neighbours, of bf16: gated for gate|up, with a residual for o and down; with a
    workspace if K is split."""
    gated = (n, k) == GATE_UP
    extra: dict[str, Any] = {"activation": "silu"} if gated else {}
    if n == HIDDEN:
        extra["residual"] = Operand("residual", act, ("tokens", n))
    if act == "bf16":
        extra["fused"] = _neighbours(n, k, format, act, kind)
    tile = tile or default_tile(kind, n, k, format, max_tokens, sm)
    if tile.splits > 1:
        extra["workspace"] = Operand("workspace", "f32", (tile.splits, "tokens", n))
        extra["counters"] = Operand("counters", "i32", (-(-n // tile.block_n),))
    return build(
        Operand("x", act, ("tokens", k)),
        weight_operands(format, n, k, act),
        Operand("y", act, ("tokens", n // 2 if gated else n)),
        format=format,
        max_tokens=max_tokens,
        sm=sm,
        tile=tile,
        **extra,
    )
