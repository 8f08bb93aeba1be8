"""What the build of a candidate takes: bytes on the disk from shapes and formats, memory from this machine's facts."""

from __future__ import annotations

from pathlib import Path

from ...recipes.recipe import Recipe
from ...runtime.costs.facts import CpuFacts, load_facts
from ..checkpoint.checkpoint import Checkpoint
from ..checkpoint.digest import Files
from ..checkpoint.folder import Folder
from ..checkpoint.weights.random_source import RandomSource
from ..config.generation import Generation
from ..families.config import Config
from ..planner.build_price import build_sizes, predict_build
from ..tokens.said import sources_of
from .report import BuildFigures


def build_cost(checkpoint: Checkpoint, recipe: Recipe, context: int) -> BuildFigures:
    """What it takes to build a recipe; `context` is the engine's number of positions."""
    sizes = build_sizes(checkpoint, recipe, context, sections=len(recipe.profiles) + len(checkpoint.tokenizer))
    return BuildFigures(None, _peak(checkpoint, recipe, load_facts(), context), sizes.bytes)


def _peak(checkpoint: Checkpoint, recipe: Recipe, facts: CpuFacts | None, context: int) -> int | None:
    """None without the facts of this machine, or if they do not have the format."""
    if facts is None or facts.build is None:
        return None
    try:
        return predict_build(checkpoint, recipe, facts.build, context=context, threads=facts.threads).peak_bytes
    except KeyError:
        return None


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
