"""References, cases and calls of mixture-of-experts layers: small shapes in every format, Mixtral, gpt-oss."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from ......quantize import FORMATS as QUANTIZED
from ......runtime.plan.formula import value
from ...call import ROUNDING, Case, KernelCall, Operand
from ..gated import REFERENCE
from ..linear.cases import torch_dtype, weight_operands
from ..linear.tiles import Tile
from .sort import Sorted, sorted_rows
from .tiles import Product, tiles_of, whole_if_many


@dataclass(frozen=True)
class Layer:
    """A model's mixture-of-experts layer; sizes are from its config.json."""

    experts: int
    chosen: int
    """Experts per token."""
    hidden: int
    """The model's hidden size."""
    width: int
    """The intermediate size of an expert."""
    activation: str = "silu"
    bias: bool = False
    """True if the experts' linears have a bias."""


MIXTRAL_8X7B = Layer(8, 2, 4096, 14336)
GPT_OSS_20B = Layer(32, 4, 2880, 2880, "limited", True)
QWEN3_30B_A3B = Layer(128, 8, 2048, 768)
ALPHA, LIMIT = 1.702, 7.0
"""Of GPT-OSS."""


@dataclass(frozen=True)
class MoeCase:
    """One case of `moe_linear`."""

    format: str
    tokens: int
    experts: int
    chosen: int
    n: int
    k: int
    tile: Tile
    used: int = 0
    """Only the first `used` experts get tokens; 0: all."""
    act: str = "bf16"
    weight: str = "bf16"
    y: str = ""
    gather: bool = True
    """True if x has a row per token, False if it has a row per sorted row."""
    bias: bool = False
    shares: bool = False
    activation: str = ""
    limit: float = 2.0
    """Of "limited", so small that it matters."""
    begin: int = 0
    """The first of these experts; tokens choose others too."""

    @property
    def width(self) -> int:
        """Columns of the result."""
        return self.n // 2 if self.activation else self.n


SPECS = (
    MoeCase("dense", 1, 5, 2, 40, 100, Tile(64, 64, 16, 1, 4, 3), act="f16", weight="f16"),
    MoeCase("dense", 33, 5, 4, 70, 256, Tile(64, 64, 16, 2, 4, 3), used=4, gather=False, bias=True),
    MoeCase("dense", 33, 4, 2, 70, 64, Tile(64, 32, 32, 1, 4, 2), y="f32"),
    MoeCase("dense", 9, 4, 2, 70, 64, Tile(64, 64, 16, 1, 2, 3), weight="f32", bias=True, activation="silu"),
    MoeCase("dense", 33, 4, 3, 160, 256, Tile(64, 64, 16, 2, 2, 3), shares=True, activation="gelu_pytorch_tanh"),
    MoeCase("dense", 33, 5, 2, 140, 96, Tile(128, 64, 128, 1, 8, 3), bias=True, activation="limited"),
    MoeCase("dense", 17, 3, 2, 70, 96, Tile(64, 64, 16, 1, 2, 3), activation="gelu", begin=3),
    MoeCase("fp8", 33, 5, 1, 40, 160, Tile(64, 128, 16, 1, 4, 3), used=1),
    MoeCase("fp8", 3, 8, 2, 40, 67, Tile(64, 64, 16, 1, 4, 1), act="f16", gather=False, bias=True),
    MoeCase("fp8", 9, 4, 2, 140, 160, Tile(64, 128, 16, 1, 2, 3), activation="silu"),
    MoeCase("int4", 33, 5, 2, 70, 160, Tile(64, 128, 64, 1, 4, 1), used=4),
    MoeCase("int4", 3, 5, 2, 40, 320, Tile(64, 128, 16, 3, 4, 1), act="f16", gather=False),
    MoeCase("int4", 33, 5, 2, 140, 160, Tile(64, 128, 16, 1, 2, 3), bias=True, shares=True, activation="silu"),
    MoeCase("int4-g128", 3, 5, 1, 70, 256, Tile(64, 128, 16, 1, 4, 1)),
    MoeCase("int4-g128", 3, 5, 2, 128, 512, Tile(64, 256, 16, 2, 2, 3), activation="relu"),
    MoeCase("int8", 33, 5, 2, 40, 96, Tile(64, 64, 16, 1, 4, 1), act="f16", bias=True),
    MoeCase("int8", 9, 5, 2, 130, 96, Tile(64, 64, 16, 1, 2, 1), bias=True, activation="limited"),
    MoeCase("int8-g128", 1, 5, 4, 40, 128, Tile(64, 64, 16, 1, 4, 1), gather=False),
    MoeCase("int8-g128", 9, 5, 2, 130, 128, Tile(128, 64, 64, 1, 8, 1), activation="silu"),
    MoeCase("nvfp4", 3, 5, 2, 70, 432, Tile(64, 128, 16, 2, 4, 1), y="f32"),
    MoeCase("nvfp4", 33, 5, 1, 40, 144, Tile(64, 128, 32, 1, 4, 1), act="f16", used=4, gather=False),
    MoeCase("nvfp4", 33, 5, 2, 160, 144, Tile(64, 128, 16, 1, 2, 3), activation="silu"),
    MoeCase("mxfp4", 1, 32, 4, 130, 160, Tile(64, 128, 16, 1, 4, 3), bias=True),
    MoeCase("mxfp4", 140, 5, 4, 130, 256, Tile(128, 128, 128, 1, 8, 1), used=4, gather=False),
    MoeCase("mxfp4", 33, 6, 4, 192, 160, Tile(64, 128, 16, 1, 2, 3), bias=True, activation="limited"),
)


def stacked_operands(format: str, experts: int, n: int, k: int, dense: str) -> tuple[Operand, ...]:
    """The tensors of experts' weights [E, n, k]: each tensor holds those of all experts, one after the other."""
    return tuple(Operand(o.name, o.dtype, (experts, *o.shape)) for o in weight_operands(format, n, k, dense))


def stacked_weights(
    format: str, experts: int, n: int, k: int, dense: str, random: torch.Generator
) -> tuple[dict[str, torch.Tensor], torch.Tensor]:
    """(random stored tensors by operand name, their dequantized numbers f64 [E, n, k])."""
    # Experts differ in magnitude, so that using another expert's scales gives a wrong result.
    weight = torch.randn(experts, n, k, generator=random) * 0.05 * torch.arange(1, experts + 1)[:, None, None]
    if format == "dense":
        stored = weight.to(torch_dtype(dense))
        return {"weight": stored}, stored.double()
    parts = [QUANTIZED[format].quantize(one) for one in weight]
    stored = {}
    for operand in weight_operands(format, n, k, dense):
        array = torch.from_numpy(np.stack([np.array(part[operand.name]) for part in parts]))
        stored[operand.name] = array.view(torch.bfloat16) if operand.dtype == "bf16" else array
    exact = np.stack([QUANTIZED[format].dequantize(part) for part in parts])
    return stored, torch.from_numpy(exact).double()


def _activated(pairs: torch.Tensor, spec: MoeCase) -> torch.Tensor:
    """[rows, n] in f64, of which columns alternate -> [rows, n / 2]."""
    gate, up = pairs[:, 0::2], pairs[:, 1::2]
    if spec.activation != "limited":
        return REFERENCE[spec.activation](gate) * up
    gate = gate.clamp(max=spec.limit)
    return gate * (ALPHA * gate).sigmoid() * (up.clamp(-spec.limit, spec.limit) + 1)


def case(build: Callable[..., KernelCall], ending: Callable[..., object], spec: MoeCase) -> Case:
    """The case with its tensors; expected is each row's f64 product with its expert; NaN in padding."""
    random = torch.Generator().manual_seed(spec.n * spec.k + spec.tokens)
    choices = torch.rand(spec.tokens, spec.begin + (spec.used or spec.experts), generator=random)
    choices = choices.argsort(dim=1)[:, : spec.chosen]
    tables = sorted_rows(choices, spec.experts, spec.tile.block_m, spec.begin)
    assignment = tables["assignment_of_row"]
    rows = len(assignment)
    stored, exact = stacked_weights(spec.format, spec.experts, spec.n, spec.k, spec.weight, random)
    x = torch.randn(spec.tokens if spec.gather else rows, spec.k, generator=random).to(torch_dtype(spec.act))
    real = assignment >= 0
    if not spec.gather:
        x[~real] = float("nan")
    inputs: dict[str, Any] = {**stored, "x": x}
    inputs |= {name: tables[name] for name in ("assignment_of_row", "expert_of_block")}
    expert = tables["expert_of_block"].repeat_interleave(spec.tile.block_m)
    read = (x[assignment // spec.chosen] if spec.gather else x)[real].double()
    found = torch.einsum("rk,rnk->rn", read, exact[expert[real]])
    if spec.shares:
        inputs["shares"] = torch.rand(spec.tokens, spec.chosen, generator=random)
        found *= inputs["shares"].double().flatten()[assignment[real], None]
    if spec.bias:
        inputs["bias"] = torch.randn(spec.experts, spec.n, generator=random).to(torch_dtype(spec.act))
        found += inputs["bias"].double()[expert[real]]
    expected = torch.full((rows, spec.width), float("nan"), dtype=torch.float64)
    expected[real] = _activated(found, spec) if spec.activation else found
    dtype = spec.y or spec.act
    call = _call(build, ending, spec, dtype)
    outcome = {"y": expected}
    counters = call.arguments.get("counters")
    if isinstance(counters, Operand):
        inputs["counters"] = torch.zeros([value(d, {}) for d in counters.shape], dtype=torch.int32)
        outcome["counters"] = inputs["counters"]
    form = "-".join(("gathered" if spec.gather else "ordered", *([spec.activation] if spec.activation else [])))
    name = f"{spec.format}-{spec.act}-{spec.tokens}x{spec.n}x{spec.k}-{spec.chosen}of{spec.experts}-{form}"
    # Weights with a scale per group are rounded once more, to the act dtype; float32 ones to TF32.
    rounding = ROUNDING["f16"] if spec.weight == "f32" else ROUNDING[spec.act] / 2
    return Case(name, call, inputs, {"tokens": spec.tokens}, outcome, ROUNDING[dtype] + rounding)


def _call(build: Callable[..., KernelCall], ending: Callable[..., object], spec: MoeCase, dtype: str) -> KernelCall:
    """The call for at most spec.tokens tokens."""
    tile, of = spec.tile, spec.begin + spec.experts
    tables = Sorted.made(Operand.of, "tokens", spec.experts, spec.chosen, tile.block_m, of)
    rows = tables.assignment_of_row.shape[0]
    extra: dict[str, Any] = {}
    if tile.splits > 1:
        most = value(tables.blocks, {"tokens": spec.tokens})
        extra["workspace"] = Operand("workspace", "f32", (tile.splits, rows, spec.n))
        extra["counters"] = Operand("counters", "i32", (-(-spec.n // tile.block_n) * most,))
    if spec.bias:
        extra["bias"] = Operand("bias", spec.act, (spec.experts, spec.n))
    if spec.shares:
        extra["shares"] = Operand("shares", "f32", ("tokens", spec.chosen))
    return build(
        Operand("x", spec.act, ("tokens" if spec.gather else rows, spec.k)),
        stacked_operands(spec.format, spec.experts, spec.n, spec.k, spec.weight),
        tables,
        Operand("y", dtype, (rows, spec.width)),
        format=spec.format,
        tile=tile,
        gather=spec.gather,
        ending=ending(spec.activation, ALPHA, spec.limit) if spec.activation else None,
        **extra,
    )


def calls(build: Callable[..., KernelCall], ending: Callable[..., object], sm: int) -> Iterator[KernelCall]:
    """Layers of known models in steps of 1, 64 and 2048 tokens."""
    for tokens in (1, 64, 2048):
        for format in ("dense", "fp8", "nvfp4"):
            yield from _layer(build, ending, MIXTRAL_8X7B, format, tokens, sm)
        yield from _layer(build, ending, GPT_OSS_20B, "mxfp4", tokens, sm)
        for format in ("dense", "int4"):
            yield from _layer(build, ending, QWEN3_30B_A3B, format, tokens, sm)


def _layer(
    build: Callable[..., KernelCall], ending: Callable[..., object], layer: Layer, format: str, tokens: int, sm: int
) -> Iterator[KernelCall]:
    """The two calls of a layer's experts: gate|up of the tokens, then down of the resulting rows."""
    sizes = ((2 * layer.width, layer.hidden), (layer.hidden, layer.width))
    products = [Product(stacked_operands(format, layer.experts, n, k, "bf16"), n, k, format) for n, k in sizes]
    assignments = tokens * layer.chosen
    busy = min(layer.experts, assignments)
    tiles = tiles_of(products, each=-(-assignments // layer.experts), busy=busy, sm=sm)
    tables = Sorted.made(Operand.of, "tokens", layer.experts, layer.chosen, tiles[0].block_m)
    blocks = value(tables.blocks, {"tokens": tokens})
    for one, tile, first in zip(products, tiles, (True, False), strict=True):
        spec = MoeCase(
            *(format, tokens, layer.experts, layer.chosen, one.n, one.k, whole_if_many(tile, one.n, blocks)),
            gather=first,
            bias=layer.bias,
            activation=layer.activation if first else "",
            limit=LIMIT,
        )
        yield _call(build, ending, spec, "bf16")
