"""What a prediction misses, shown by pricing the same row with it: products of FP4 and of experts, attention in FP8.

With FP8 activations, as the rows are priced, llmc's plans multiply FP8 from copies of 4-bit weights; and attention
multiplies 16-bit numbers, and so do experts. TensorRT-LLM multiplies FP4 on chips that can: the weights are read as
they are stored, at the chip's FP4 rate; and attention of prompts multiplies FP8 where a checkpoint has scales for it,
as ModelOpt's have.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

from llmc.compiler.planner.candidates import Pricer
from llmc.compiler.planner.rates import Rates
from llmc.compiler.planner.serve import Workload
from llmc.recipes.machines.link import Link
from llmc.runtime.chips import Chip

from . import figures, predict
from .figures import MODELOPT, Figure
from .models import PROMPT_TOKENS, RECIPES, W4A4, pieces

FP4_PRODUCTS, FP8_ATTENTION, NARROW_EXPERTS = "Products of FP4", "Attention in FP8", "Experts in FP8 and FP4"
Ablation = Callable[[Figure, Rates], float]
"""The tokens/s of a figure with a term that llmc's plans lack."""


def missing(figure: Figure) -> tuple[str, Ablation] | None:
    """What is known to be missing from the prediction of a figure."""
    if any(figure in table.figures for table in figures.NARROW_EXPERTS):
        return NARROW_EXPERTS, with_narrow_experts
    if figure.deployment.recipe == "nvfp4":
        return FP4_PRODUCTS, with_fp4_products
    return (FP8_ATTENTION, with_fp8_attention) if figure in MODELOPT.figures else None


def with_fp4_products(figure: Figure, rates: Rates) -> float:
    """The same weights with 4-bit activations: llmc's own plans of them, which multiply FP4."""
    found = figure.deployment
    load = Workload(figure.input, figure.output, PROMPT_TOKENS)
    machine = predict.machine(found)
    pricer = Pricer(pieces(found.model, W4A4, found.tp), RECIPES[W4A4], load, rates, Link.seconds_with_peers)
    _, _, most = pricer.memory(machine, found.pp)
    return pricer.server(machine, found.pp).served(load, most).decode


@dataclass(frozen=True)
class _NarrowExperts(Chip):
    """A chip whose experts multiply FP4 if it does, else FP8."""

    @property
    def narrow_rates(self) -> dict[str, float]:
        return {**super().narrow_rates, "moe_linear": self.fp4 or self.fp8 or self.bf16}


def with_narrow_experts(figure: Figure, rates: Rates) -> float:
    """The same plans on a chip where experts reach the same share of the rate of FP8, or of FP4."""
    machine = predict.machine(figure.deployment)
    faster = replace(machine, chip=_NarrowExperts(**vars(machine.chip)))
    return predict.throughput(figure, rates, faster).decode


def with_fp8_attention(figure: Figure, rates: Rates) -> float:
    """Attention reaches the same share of twice the rate."""
    return predict.throughput(figure, replace(rates, attention=2 * rates.attention)).decode
