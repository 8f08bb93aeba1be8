"""Lowers the skeleton of a model for one degree of tensor parallelism, with the formats of every recipe."""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import dataclass, replace
from functools import partial

from ...passes import model_passes, run_phase
from ...passes.graph.graph import Graph
from ...recipes.recipe import Recipe
from ...runtime.errors import Unsupported
from ..checkpoint.weights.random_source import RandomSource
from ..decoder.decoder import build_spec
from ..divisible import require_storable
from ..families.config import Config
from ..families.spec import DecoderSpec
from .pieces import Pieces, legal_graphs, pieces_of
from .reformat import BASE, reformat, structure
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


class AllFormats:
    """Lowers a model with `tp` shards; recipes that differ only in formats share the legal graphs."""

    def __init__(self, subject: Subject, tp: int) -> None:
        self._subject, self._tp = subject, tp
        self._bases: dict[Hashable, tuple[Graph, ...]] = {}
        self._specs: dict[int, DecoderSpec] = {}

    def pieces(self, recipe: Recipe) -> Pieces | Refused:
        """The pieces of a recipe's first target, or why there are none."""
        subject, tp = self._subject, self._tp
        context = recipe.max_context or subject.config.decoder.positions
        spec = self._specs.get(context) or subject.config.decoder.within(context)
        self._specs[context] = spec
        skeleton = Skeleton.of(spec, recipe.format_of)
        if skeleton.wrong_shapes:
            try:
                require_storable(recipe, spec)
            except Unsupported as error:
                return Refused(recipe, None, f"{error.asked}: {error.found}")
        try:
            skeleton.placement(tp)
            graphs = self._graphs(skeleton, recipe, context)
        except Unsupported as error:
            return Refused(recipe, tp, f"{error.asked}: {error.found}")
        return pieces_of(graphs, skeleton, recipe, context, tp, subject.dtype)

    def _graphs(self, skeleton: Skeleton, recipe: Recipe, context: int) -> tuple[Graph, ...]:
        shared = structure(skeleton)
        if shared is None:
            return self._lower(skeleton, recipe, context)
        key = shared, recipe.targets[0], recipe.activations, recipe.kv, context
        if key not in self._bases:
            base = replace(skeleton, format_of=partial(_base_of, skeleton))
            self._bases[key] = self._lower(base, recipe, context)
        return tuple(reformat(graph, skeleton) for graph in self._bases[key])

    def _lower(self, skeleton: Skeleton, recipe: Recipe, context: int) -> tuple[Graph, ...]:
        source = RandomSource(skeleton.short.tensors(), dtype=self._subject.stored)
        logical = build_spec(skeleton.short, source, context, {}, self._subject.config.family.name).graph
        run_phase(model_passes(skeleton.short_format), logical)
        return legal_graphs(logical, skeleton, recipe, self._tp)


def _base_of(skeleton: Skeleton, module: str) -> str:
    return BASE if skeleton.format_of(module) != "none" else "none"
