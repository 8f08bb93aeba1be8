"""Lowers the skeleton of a model for every format and degree of tensor parallelism, on all cores."""

from __future__ import annotations

import multiprocessing
import sys
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import partial

from ...passes import model_passes, run_phase
from ...recipes.recipe import Recipe
from ...runtime.errors import Unsupported
from ...runtime.machine import cpu_count
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
    """Why a format cannot be used, or a degree of it."""

    recipe: Recipe
    tp: int | None
    reason: str


def lower_all(
    subject: Subject, recipes: Sequence[Recipe], degrees: Sequence[int]
) -> Iterator[tuple[Recipe, Pieces] | Refused]:
    """The pieces of each recipe and degree that are legal, in order; the others as `Refused`."""
    lower = partial(_lower, subject, degrees)
    workers = min(cpu_count(), len(recipes))
    if workers < 2 or sys.platform != "linux" or multiprocessing.parent_process() is not None:
        found = map(lower, recipes)
        yield from (one for each in found for one in each)
        return
    # What is imported is shared by a fork; a process that started anew would import for longer than it lowers.
    with ProcessPoolExecutor(workers, mp_context=multiprocessing.get_context("fork")) as pool:
        for each in pool.map(lower, recipes):
            yield from each


def _lower(subject: Subject, degrees: Sequence[int], recipe: Recipe) -> list[tuple[Recipe, Pieces] | Refused]:
    context = recipe.max_context or subject.config.decoder.positions
    spec = subject.config.decoder.within(context)
    try:
        require_storable(recipe, spec)
    except Unsupported as error:
        return [Refused(recipe, None, f"{error.asked}: {error.found}")]
    skeleton = Skeleton.of(spec, recipe.format_of)
    source = RandomSource(skeleton.short.tensors(), dtype=subject.stored)
    logical = build_spec(skeleton.short, source, context, {}, subject.config.family.name).graph
    run_phase(model_passes(skeleton.short_format), logical)
    found: list[tuple[Recipe, Pieces] | Refused] = []
    for tp in degrees:
        try:
            found.append((recipe, lower_pieces(logical, skeleton, recipe, context, tp, subject.dtype)))
        except Unsupported as error:
            found.append(Refused(recipe, tp, error.found))
    return found
