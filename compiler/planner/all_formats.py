"""Lowers the skeleton of a model for each degree of tensor parallelism, with the formats of every recipe."""

from __future__ import annotations

from collections.abc import Hashable, Iterable
from contextlib import suppress
from dataclasses import dataclass

from ...passes import model_passes, run_phase
from ...passes.graph.graph import Graph
from ...recipes.recipe import Recipe
from ...runtime.dtypes import FP4_FORMATS
from ...runtime.errors import Unsupported
from ..checkpoint.weights.random_source import RandomSource
from ..decoder.decoder import build_spec
from ..divisible import require_storable
from ..families.config import Config
from ..families.spec import DecoderSpec
from .pieces import Pieces, legal_graphs, pieces_of
from .reformat import Reformatted, on_base, structure
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


class Logical:
    """What all degrees of tensor parallelism share: the skeletons of recipes, and their logical graphs."""

    def __init__(self, subject: Subject) -> None:
        self.subject = subject
        self._specs: dict[int, DecoderSpec] = {}
        self._skeletons: dict[Hashable, Skeleton] = {}
        self._graphs: dict[Hashable, Graph] = {}

    def context(self, recipe: Recipe) -> int:
        """Positions of a recipe's engines."""
        return recipe.max_context or self.subject.config.decoder.positions

    def skeleton(self, recipe: Recipe) -> Skeleton:
        """The skeleton of a recipe, with its formats."""
        context = self.context(recipe)
        key = recipe.default_format, recipe.rules, context
        if key not in self._skeletons:
            if context not in self._specs:
                self._specs[context] = self.subject.config.decoder.within(context)
            self._skeletons[key] = Skeleton.of(self._specs[context], recipe.format_of)
        return self._skeletons[key]

    def graph(self, skeleton: Skeleton, context: int) -> Graph:
        """The graph of a skeleton after the model passes; not to be changed.

        Raises:
            Unsupported: a rope type has no value for the head size or the trained length.
        """
        short = skeleton.short
        key = skeleton.layers, tuple(map(skeleton.short_format, short.linears())), context
        if key not in self._graphs:
            source = RandomSource(short.tensors(), dtype=self.subject.stored)
            made = build_spec(short, source, context, {}, self.subject.config.family.name).graph
            run_phase(model_passes(skeleton.short_format), made)
            self._graphs[key] = made
        return self._graphs[key]

    def prepare(self, recipes: Iterable[Recipe]) -> None:
        """Make what these recipes need, so that processes which fork from this one have it."""
        for recipe in recipes:
            skeleton = self.skeleton(recipe)
            with suppress(Unsupported):  # said of each degree
                if not skeleton.wrong_shapes:
                    self.graph(skeleton if structure(skeleton) is None else on_base(skeleton), self.context(recipe))


class AllFormats:
    """Lowers a model with `tp` * `ep` shards; recipes that differ only in formats share the legal graphs."""

    def __init__(self, logical: Logical, tp: int, ep: int = 1) -> None:
        self._logical, self._tp, self._ep = logical, tp, ep
        self._bases: dict[Hashable, tuple[Reformatted, ...]] = {}

    def pieces(self, recipe: Recipe) -> Pieces | Refused:
        """The pieces of a recipe's first target, or why there are none."""
        tp, context, skeleton = self._tp, self._logical.context(recipe), self._logical.skeleton(recipe)
        if skeleton.wrong_shapes:
            try:
                require_storable(recipe, skeleton.spec)
            except Unsupported as error:
                return Refused(recipe, None, f"{error.asked}: {error.found}")
        try:
            skeleton.placement(tp, self._ep)
            graphs = self._graphs(skeleton, recipe, context)
        except Unsupported as error:
            return Refused(recipe, tp, f"{error.asked}: {error.found}")
        return pieces_of(graphs, skeleton, recipe, context, tp, self._logical.subject.dtype, self._ep)

    def _graphs(self, skeleton: Skeleton, recipe: Recipe, context: int) -> tuple[Graph, ...]:
        shared = structure(skeleton)
        if shared is None or recipe.activations in FP4_FORMATS:  # these are for linears in their own format
            return legal_graphs(self._logical.graph(skeleton, context), skeleton, recipe, self._tp, self._ep)
        key = shared, recipe.targets[0], recipe.activations, recipe.kv, context
        if key not in self._bases:
            base = on_base(skeleton)
            legal = legal_graphs(self._logical.graph(base, context), base, recipe, self._tp, self._ep)
            self._bases[key] = tuple(map(Reformatted, legal))
        return tuple(one.to(skeleton) for one in self._bases[key])
