"""Lowers the skeleton of a model for the formats of one recipe and every degree of tensor parallelism."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from ...passes import model_passes, run_phase
from ...recipes.recipe import Recipe
from ...runtime.errors import Unsupported
from ..checkpoint.weights.random_source import RandomSource
from ..decoder.decoder import build_spec
from ..divisible import require_storable
from ..families.config import Config
from .pieces import Pieces, lower_pieces
from .skeleton import Skeleton


@dataclass(frozen=True)
class Subject:
    """The model that is planned."""

    config: Config
    dtype: str
    """As config.json spells it: "bfloat16"."""
    stored: str
    """Of the tensors, as safetensors spells it: "BF16"."""


@dataclass(frozen=True)
class Refused:
    """Why a recipe, or a degree of tensor parallelism with it, cannot be used."""

    recipe: Recipe
    tp: int | None
    """None: no degree can."""
    reason: str


def lowered(subject: Subject, recipe: Recipe, degrees: Iterable[int]) -> Iterator[Pieces | Refused]:
    """The pieces of each degree that is legal for this model and recipe."""
    context = recipe.max_context or subject.config.decoder.positions
    spec = subject.config.decoder.within(context)
    try:
        require_storable(recipe, spec)
        skeleton = Skeleton.of(spec, recipe.format_of)
        source = RandomSource(skeleton.short.tensors(), dtype=subject.stored)
        logical = build_spec(skeleton.short, source, context, {}, subject.config.family.name).graph
        run_phase(model_passes(skeleton.short_format), logical)
    except Unsupported as error:
        yield Refused(recipe, None, f"{error.asked}: {error.found}")
        return
    for tp in degrees:
        try:
            yield lower_pieces(logical, skeleton, recipe, context, tp, subject.dtype)
        except Unsupported as error:
            yield Refused(recipe, tp, f"{error.asked}: {error.found}")
