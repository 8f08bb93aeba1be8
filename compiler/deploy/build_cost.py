"""What the build of a candidate takes: disk from shapes and formats, time and memory by this machine's facts."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path

from ...recipes.recipe import Recipe
from ...runtime.costs.facts import CpuFacts
from ..checkpoint.checkpoint import Checkpoint
from ..checkpoint.digest import Files
from ..checkpoint.folder import Folder
from ..checkpoint.weights.random_source import RandomSource
from ..config.generation import Generation
from ..families.config import Config
from ..planner.build_price import KERNELS, build_sizes, predict_build, section_count
from ..tokens.said import sources_of
from .report import BuildFigures


def build_cost(checkpoint: Checkpoint, recipe: Recipe, context: int, facts: CpuFacts | None) -> BuildFigures:
    """What it takes to build a recipe here, with no kernel in the cache and no weight in the page cache.

    `context` is the engine's number of positions. Without facts of this machine, or if they do not have the format,
    only the engine's bytes are known.
    """
    if facts is not None and facts.build is not None:
        with suppress(KeyError):
            price = predict_build(checkpoint, recipe, facts.build, context=context, threads=facts.threads, cold=True)
            price = price.with_kernels(KERNELS * len(recipe.profiles))
            return BuildFigures(price.seconds, price.peak_bytes, price.weight_bytes)
    sections = section_count(checkpoint, recipe)
    return BuildFigures(None, None, build_sizes(checkpoint, recipe, context, sections=sections).bytes)


def without_weights(path: Path, config: Config, stored: str) -> Checkpoint:
    """A checkpoint of a configuration alone: its tensors have shapes and a dtype, and nobody reads them."""
    return Checkpoint(
        path=path,
        config=config,
        generation={},
        special=sources_of(config, Generation(), {}, {}),
        tokenizer={},
        chat_template=None,
        name=None,
        hub_id=None,
        revision=None,
        licence=None,
        random_seed=0,
        warnings=(),
        source=RandomSource(config.decoder.tensors(), dtype=stored),
        files=Files(Folder(path.parent)),
    )
