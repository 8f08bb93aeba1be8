"""What a prediction misses, shown by pricing the same row as if llmc had it: products of FP4, attention in FP8.

With FP8 activations, as the rows are priced, llmc's plans expand 4-bit weights to E4M3 and multiply FP8; and attention
multiplies 16-bit numbers. TensorRT-LLM multiplies FP4 on chips that can: the weights are read once as they are stored,
at the chip's FP4 rate; and attention of prompts multiplies FP8 where a checkpoint has scales for it, as ModelOpt's have.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from functools import cache

from llmc.compiler.planner.candidates import Pricer
from llmc.compiler.planner.pieces import Block, Pieces, Work
from llmc.compiler.planner.rates import Rates
from llmc.compiler.planner.serve import Workload
from llmc.recipes.machines.link import Link

from . import predict
from .figures import MODELOPT, Figure
from .models import PROMPT_TOKENS, RECIPES, pieces

_EXPANDS, _MULTIPLIES = "expand_fp8", "linear_fp8"
FP4_PRODUCTS, FP8_ATTENTION = "Products of FP4", "Attention in FP8"
Ablation = Callable[[Figure, Rates], float]
"""The tokens/s of a figure with a term that llmc's plans lack."""


def missing(figure: Figure) -> tuple[str, Ablation] | None:
    """What is known to be missing from the prediction of a figure."""
    if figure.deployment.recipe == "nvfp4":
        return FP4_PRODUCTS, with_fp4_products
    return (FP8_ATTENTION, with_fp8_attention) if figure in MODELOPT.figures else None


def with_fp4_products(figure: Figure, rates: Rates) -> float:
    """Launches that expand are left out, products read what those had read, and their peak is the chip's for FP4."""
    found = figure.deployment
    machine = predict.machine(found)
    faster = replace(machine, chip=replace(machine.chip, fp8=machine.chip.fp4))
    load = Workload(figure.input, figure.output, PROMPT_TOKENS)
    made = _without_expanding(found.model, found.recipe, found.tp)
    server = Pricer(made, RECIPES[found.recipe], load, rates, Link.seconds_with_peers).server(faster, found.pp)
    return server.served(load, predict.room(found, figure.input, figure.output)).decode


def with_fp8_attention(figure: Figure, rates: Rates) -> float:
    """Attention reaches the same share of twice the rate."""
    return predict.throughput(figure, replace(rates, attention=2 * rates.attention)).decode


@cache
def _without_expanding(model: str, recipe: str, tp: int) -> Pieces:
    made = pieces(model, recipe, tp)
    return replace(made, blocks={name: _block(block) for name, block in made.blocks.items()})


def _block(block: Block) -> Block:
    return replace(block, work=tuple(map(_work, block.work)))


def _work(counts: Counter[Work]) -> Counter[Work]:
    """An expansion's bytes are what it reads (codes, scales, a scale of all) and what it writes (E4M3, scales)."""
    stored: dict[str, str] = {}
    for work in counts:
        if work.kernel == _EXPANDS:
            parts = work.bytes.split(" + ")
            stored[" + ".join(parts[-2:])] = " + ".join(parts[:-2])
    found: Counter[Work] = Counter()
    for work, count in counts.items():
        if work.kernel == _MULTIPLIES:
            (written,) = [one for one in stored if one in work.bytes]
            work = replace(work, bytes=work.bytes.replace(written, stored[written]))
        if work.kernel != _EXPANDS:
            found[work] += count
    return found
