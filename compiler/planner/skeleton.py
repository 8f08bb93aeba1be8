"""The shortest decoder that has every kind of layer in every place of a pipeline: prices of any depth are made of it.

A launch costs the same in every layer that has the same record, the same weight formats and the same place: the first
of the model, the first of a later stage (which receives), the last of an earlier stage (which sends), the last of the
model, or any other. So a graph of a few layers is lowered, and its blocks are counted.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from math import prod

from ...passes.placement import Placement, Span
from ...quantize import FORMATS
from ...runtime.engine_file.split import Split
from ...runtime.errors import Unsupported
from ..decoder.placement import FormatOf, balanced, place, weight_bits
from ..families.spec import DecoderSpec, LayerSpec

_EMBED, _HEAD = "embed", "head"
"""Blocks of the graph outside layers (`passes/graph/graph.py`, BLOCK)."""


@dataclass(frozen=True)
class Skeleton:
    """A decoder of few layers, and which layer of the model each of them stands for."""

    spec: DecoderSpec
    """The model at its context."""
    format_of: FormatOf
    kinds: tuple[int, ...]
    """For each layer of the model, the first layer of its kind."""

    @staticmethod
    def of(spec: DecoderSpec, format_of: FormatOf) -> Skeleton:
        """The skeleton of a model whose modules have these weight formats.

        Raises:
            Unsupported: layers share caches, so a layer of few does not cost what it does among many.
        """
        if any(layer.mixer.source is not None for layer in spec.layers):
            fix = "`llmc build`, which needs no prices"
            raise Unsupported("cannot price this model", found="layers that share the cache of another", fix=fix)
        known: list[tuple[LayerSpec, tuple[str, ...], int]] = []
        kinds, modules, last = [], (), None
        for index, layer in enumerate(spec.layers):
            if layer is not last:
                modules, last = matrices(layer), layer
            prefix = spec.layer.format(index)
            formats = tuple(format_of(prefix + module) for module in modules)
            kind = next((first for one, same, first in known if same == formats and one == layer), index)
            if kind == index:
                known.append((layer, formats, index))
            kinds.append(kind)
        return Skeleton(spec, format_of, tuple(kinds))

    @cached_property
    def distinct(self) -> tuple[int, ...]:
        """The first layer of each kind."""
        return tuple(dict.fromkeys(self.kinds))

    @cached_property
    def layers(self) -> tuple[int, ...]:
        """For each layer of the skeleton, the layer of the model that it stands for.

        Stage 0 has the model's first layer, one of each kind, and one that sends; later stages have one that
        receives, and one that sends or the model's last.
        """
        first, *others = self.distinct
        between = [layer for kind, after in zip(self.distinct, others, strict=False) for layer in (kind, after)]
        return (0, *self.distinct, first, *between, self.distinct[-1], len(self.kinds) - 1)

    @cached_property
    def short(self) -> DecoderSpec:
        """The decoder with these layers."""
        return replace(self.spec, layers=tuple(self.spec.layers[layer] for layer in self.layers))

    def short_format(self, module: str) -> str:
        """The weight format of a module of the short decoder: that of the module that it stands for."""
        for index, layer in enumerate(self.layers):
            prefix = self.spec.layer.format(index)
            if module.startswith(prefix):
                return self.format_of(self.spec.layer.format(layer) + module.removeprefix(prefix))
        return self.format_of(module)

    @cached_property
    def stages(self) -> tuple[Span, ...]:
        """The layers of the skeleton's stages."""
        ends = range(len(self.distinct) + 2, len(self.layers) + 1, 2)
        return tuple(zip((0, *ends), ends, strict=False))

    def placement(self, tp: int, ep: int = 1) -> Placement:
        """What each rank of the skeleton has, with `tp` * `ep` shards of each of its stages.

        Raises:
            Unsupported: this model and its formats cannot be split like this.
        """
        placed = place(self.short, Split(tp, 1, ep), self.short_format)
        return replace(placed, split=Split(tp, len(self.stages), ep), stages=self.stages)

    @cached_property
    def _known(self) -> dict[Span, Mapping[str, int]]:
        return {}

    @cached_property
    def bits(self) -> tuple[float, ...]:
        """Bits of the weights of each layer of the model, with those of the embedding and the head at its ends."""
        return tuple(weight_bits(self.spec, self.format_of))

    @cached_property
    def bits_per_weight(self) -> float:
        """Stored bits of a weight of the model on average, scales included; a tied embedding is stored once."""
        sizes = {kind: _weights_of(self.spec.layers[kind]) for kind in self.distinct}
        layers = sum(sizes[kind] for kind in self.kinds)
        table = self.spec.vocab_size * self.spec.hidden_size
        if not self.spec.tied:
            return sum(self.bits) / (layers + 2 * table)
        untied = replace(self, spec=replace(self.spec, tied=False))
        return (sum(untied.bits) - 16.0 * table) / (layers + table)

    def model_stages(self, count: int) -> tuple[Span, ...]:
        """The layers of each of `count` stages of the model, as a build cuts them (`decoder/placement.py`)."""
        if count not in self._cut:
            self._cut[count] = balanced(self.bits, count)
        return self._cut[count]

    @cached_property
    def _cut(self) -> dict[int, tuple[Span, ...]]:
        return {}

    @cached_property
    def wrong_shapes(self) -> tuple[str, ...]:
        """Why formats cannot store weights of the model; empty if they can."""
        formats = {module: self.short_format(module) for module in self.short.linears()}
        shapes = {module: shape for module, shape in self.short.linears().items() if formats[module] != "none"}
        return tuple(why for module, shape in shapes.items() if (why := FORMATS[formats[module]].check(*shape)))

    def blocks(self, stage: Span) -> Mapping[str, int]:
        """How often each block of the skeleton occurs in a stage of the model.

        A stage of one layer is what the places at both its ends cost, less one place between them.
        """
        if stage not in self._known:
            self._known[stage] = self._blocks_of(*stage)
        return self._known[stage]

    def _blocks_of(self, start: int, stop: int) -> Mapping[str, int]:
        places = self._places
        counts: Counter[str] = Counter(places["inner", self.kinds[layer]] for layer in range(start, stop))
        for end, (layer, kind) in {"start": (start, "recv"), "stop": (stop - 1, "send")}.items():
            outer = {"start": start == 0, "stop": stop == len(self.kinds)}[end]
            place = ({"start": "first", "stop": "last"}[end], -1) if outer else (kind, self.kinds[layer])
            counts[places[place]] += 1
            counts[places["inner", self.kinds[layer]]] -= 1
        if start == 0:
            counts[_EMBED] += 1
        if stop == len(self.kinds):
            counts[_HEAD] += 1
        return {block: count for block, count in counts.items() if count}

    @cached_property
    def _places(self) -> Mapping[tuple[str, int], str]:
        """The block of each place: its name and its kind, -1 for the ends of the model."""
        found = {("first", -1): 0, ("last", -1): len(self.layers) - 1}
        found |= {("inner", kind): 1 + index for index, kind in enumerate(self.distinct)}
        for kind, (_, stop), (start, _) in zip(self.distinct, self.stages, self.stages[1:], strict=False):
            found |= {("send", kind): stop - 1, ("recv", kind): start}
        return {place: f"layer.{index}" for place, index in found.items()}


def matrices(layer: LayerSpec) -> tuple[str, ...]:
    """Modules of the linears of a layer that a recipe may quantize, relative to it; those of all experts are one."""
    kept = {f"{one.module}.weight" for one in layer.linears() if one.kept}
    names = [name for name, shape in layer.tensors("") if len(shape) > 1 and name.endswith(".weight")]
    return tuple(name.removesuffix(".weight") for name in names if name not in kept)


def _weights_of(layer: LayerSpec) -> int:
    """Weights of the linears of a layer, those of all experts too."""
    return sum(prod(shape) for name, shape in layer.tensors("") if len(shape) > 1 and name.endswith(".weight"))
