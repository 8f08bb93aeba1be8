"""References, cases and calls of mixture-of-experts layers: small shapes in every format, Mixtral, gpt-oss."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch

from ......quantize import FORMATS as QUANTIZED
from ......runtime.chips import SHARED
from ......runtime.plan.formula import value
from ...call import ROUNDING, Case, KernelCall, Operand, product
from ..linear.cases import torch_dtype, weight_operands
from ..linear.tiles import Tile, default_tile
from .sort import blocks_formula, sorted_rows


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
    bias: bool = False
    """True if the experts' linears have a bias."""


MIXTRAL_8X7B = Layer(8, 2, 4096, 14336)
GPT_OSS_20B = Layer(32, 4, 2880, 2880, True)
_NO_TILE = Tile(64, 64, 16)


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


SPECS = (
    MoeCase("dense", 1, 5, 2, 40, 100, Tile(64, 64, 16, 1, 4, 3), act="f16", weight="f16"),
    MoeCase("dense", 33, 5, 4, 70, 256, Tile(64, 64, 16, 2, 4, 3), used=4, gather=False, bias=True),
    MoeCase("dense", 33, 4, 2, 70, 64, Tile(64, 32, 32, 1, 4, 2), y="f32"),
    MoeCase("fp8", 33, 5, 1, 40, 160, Tile(64, 128, 16, 1, 4, 3), used=1),
    MoeCase("fp8", 3, 8, 2, 40, 67, Tile(64, 64, 16, 1, 4, 1), act="f16", gather=False, bias=True),
    MoeCase("int4", 33, 5, 2, 70, 160, Tile(64, 128, 64, 1, 4, 1), used=4),
    MoeCase("int4", 3, 5, 2, 40, 320, Tile(64, 128, 16, 3, 4, 1), act="f16", gather=False),
    MoeCase("int4-g128", 3, 5, 1, 70, 256, Tile(64, 128, 16, 1, 4, 1)),
    MoeCase("int8", 33, 5, 2, 40, 96, Tile(64, 64, 16, 1, 4, 1), act="f16", bias=True),
    MoeCase("int8-g128", 1, 5, 4, 40, 128, Tile(64, 64, 16, 1, 4, 1), gather=False),
    MoeCase("nvfp4", 3, 5, 2, 70, 432, Tile(64, 128, 16, 2, 4, 1), y="f32"),
    MoeCase("nvfp4", 33, 5, 1, 40, 144, Tile(64, 128, 32, 1, 4, 1), act="f16", used=4, gather=False),
    MoeCase("mxfp4", 1, 32, 4, 130, 160, Tile(64, 128, 16, 1, 4, 3), bias=True),
    MoeCase("mxfp4", 140, 5, 4, 130, 256, Tile(128, 128, 128, 1, 8, 1), used=4, gather=False),
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


def case(build: Callable[..., KernelCall], spec: MoeCase) -> Case:
    """The case with its tensors; expected is each row's f64 product with its expert; NaN in padding."""
    random = torch.Generator().manual_seed(spec.n * spec.k + spec.tokens)
    choices = torch.rand(spec.tokens, spec.used or spec.experts, generator=random)
    tables = sorted_rows(choices.argsort(dim=1)[:, : spec.chosen], spec.experts, spec.tile.block_m)
    source = tables["token_of_row"]
    rows = len(source)
    stored, exact = stacked_weights(spec.format, spec.experts, spec.n, spec.k, spec.weight, random)
    x = torch.randn(spec.tokens if spec.gather else rows, spec.k, generator=random).to(torch_dtype(spec.act))
    real = source >= 0
    if not spec.gather:
        x[~real] = float("nan")
    inputs: dict[str, Any] = {**stored, "x": x}
    inputs |= {name: tables[name] for name in ("token_of_row", "expert_of_block")}
    expert = tables["expert_of_block"].repeat_interleave(spec.tile.block_m)
    read = x[source] if spec.gather else x
    expected = torch.full((rows, spec.n), float("nan"), dtype=torch.float64)
    expected[real] = torch.einsum("rk,rnk->rn", read[real].double(), exact[expert[real]])
    bias = None
    if spec.bias:
        inputs["bias"] = torch.randn(spec.experts, spec.n, generator=random).to(torch_dtype(spec.act))
        bias = Operand("bias", spec.act, (spec.experts, spec.n))
        expected[real] += inputs["bias"].double()[expert[real]]
    dtype = spec.y or spec.act
    call = _call(build, spec.tile, spec, dtype, bias)
    outcome = {"y": expected}
    counters = call.arguments.get("counters")
    if isinstance(counters, Operand):
        inputs["counters"] = torch.zeros([value(d, {}) for d in counters.shape], dtype=torch.int32)
        outcome["counters"] = inputs["counters"]
    form = "gathered" if spec.gather else "ordered"
    name = f"{spec.format}-{spec.act}-{spec.tokens}x{spec.n}x{spec.k}-{spec.chosen}of{spec.experts}-{form}"
    # Weights with a scale per group are rounded once more, to the act dtype.
    return Case(name, call, inputs, {"tokens": spec.tokens}, outcome, ROUNDING[dtype] + ROUNDING[spec.act] / 2)


def _call(build: Callable[..., KernelCall], tile: Tile, spec: MoeCase, dtype: str, bias: Operand | None) -> KernelCall:
    """The call for at most spec.tokens tokens."""
    blocks = blocks_formula(spec.experts, spec.chosen, tile.block_m)
    rows = product(blocks, tile.block_m)
    extra: dict[str, Any] = {}
    if tile.splits > 1:
        most = value(blocks, {"tokens": spec.tokens})
        extra["workspace"] = Operand("workspace", "f32", (tile.splits, rows, spec.n))
        extra["counters"] = Operand("counters", "i32", (-(-spec.n // tile.block_n) * most,))
    return build(
        Operand("x", spec.act, ("tokens" if spec.gather else rows, spec.k)),
        stacked_operands(spec.format, spec.experts, spec.n, spec.k, spec.weight),
        Operand("token_of_row", "i32", (rows,)),
        Operand("expert_of_block", "i32", (blocks,)),
        Operand("y", dtype, (rows, spec.n)),
        format=spec.format,
        chosen=spec.chosen,
        tile=tile,
        gather=spec.gather,
        bias=bias,
        **extra,
    )


def calls(make: Callable[..., KernelCall], layer: Layer, format: str, max_tokens: int, sm: int) -> Iterator[KernelCall]:
    """The two calls of a layer's experts: gate|up of the tokens, then down of the resulting rows."""
    for n, k, gather in ((2 * layer.width, layer.hidden, True), (layer.hidden, layer.width, False)):
        spec = MoeCase(format, max_tokens, layer.experts, layer.chosen, n, k, _NO_TILE, gather=gather)
        bias = Operand("bias", "bf16", (layer.experts, n)) if layer.bias else None
        yield _call(make, experts_tile(spec, sm), spec, "bf16", bias)


def experts_tile(spec: MoeCase, sm: int) -> Tile:
    """A linear's tile for the average number of tokens of an expert; the blocks of all experts share the chip."""
    each = -(-spec.tokens * spec.chosen // spec.experts)
    busy = min(spec.experts, spec.tokens * spec.chosen)
    kind = "small" if each <= 64 else "large"
    tile = default_tile(kind, spec.n * busy, spec.k, spec.format, each, sm)
    # With gathered rows a third stage makes some formats spill on chips with little shared memory.
    return replace(tile, stages=min(tile.stages, 2)) if SHARED[sm] <= 100 << 10 else tile
