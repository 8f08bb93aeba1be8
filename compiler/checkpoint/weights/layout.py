"""How the files of a checkpoint spell what a decoder reads: under which prefixes, and in which rows of larger tensors.

Everything after this file knows the decoder's own names. The files' names are in reports and errors, because those are
what a user can look up.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np

from ....runtime.files.safetensors import TensorInfo
from ...families.spec import DecoderSpec
from .source import Source
from .stacks import Stacked, places_of, read_names

_OWN = "model."
"""The prefix that the decoder's own names have, of all tensors but the head."""
_BODIES = {
    _OWN: "",
    "model.language_model.": "",
    "language_model.model.": "language_model.",
    "language_model.": "",
    "": "",
}
"""Its spellings, to what stands before all other names then: its own; of models of images and text in transformers 5
and before; and of what was saved without a head. The first of those that most tensors have is taken."""
_Shape = tuple[int, ...]


@dataclass(frozen=True)
class Place:
    """A tensor of the files, or `rows` of its rows."""

    tensor: str
    first: int = 0
    rows: int | None = None
    """None: the whole tensor."""


@dataclass(frozen=True)
class Layout:
    """Where the tensors of one decoder lie, or should lie, in files that hold certain names."""

    places: Mapping[str, Place | Stacked]
    """By the decoder's names; also of a head that it does not read, because it is tied."""
    shapes: Mapping[str, _Shape]
    """Every tensor of the files that is read, with the shape that it must have."""

    @cached_property
    def packed(self) -> frozenset[str]:
        """Those that are codes or scales of a weight format; the others are plain floating point."""
        return frozenset(
            tensor
            for place in self.places.values()
            if isinstance(place, Stacked) and place.dtype
            for tensor in place.tensors()
        )

    def own_name(self, tensor: str) -> str:
        """The decoder's name of a whole tensor of the files, or the same name if it has none."""
        return self._own.get(tensor, tensor)

    @cached_property
    def _own(self) -> dict[str, str]:
        whole = {name: place for name, place in self.places.items() if isinstance(place, Place) and place.rows is None}
        return {place.tensor: name for name, place in whole.items()}


def layout_of(names: Collection[str], spec: DecoderSpec) -> Layout:
    """The layout that fits the `names` of the files' tensors best; it may still name tensors that they lack."""
    present, shapes, fused = set(names), spec.tensors(), spec.fused()
    stacks = {f"{module}.{end}": stack for module, stack in spec.stacks().items() for end in ("weight", "bias")}
    shapes = {name: shape for name, shape in shapes.items() if name not in stacks}
    every = [*shapes, *(one for one, *_ in fused.values()), f"{spec.head}.weight"]
    body = _prefix([name.removeprefix(_OWN) for name in every if name.startswith(_OWN)], _BODIES, present)
    others = [name for name in every if not name.startswith(_OWN)]
    head = _prefix(others, (_BODIES[body], *_BODIES.values()), present)

    def spelled(name: str) -> str:
        others = (name.replace(own, other) for own, other in spec.renamed if own in name)
        names = [body + one.removeprefix(_OWN) if one.startswith(_OWN) else head + one for one in (name, *others)]
        return next((one for one in names if one.format(0) in present), names[0])

    parts: dict[str, list[str]] = {}
    for name, (one, *_) in fused.items():
        parts.setdefault(one, []).append(name)
    # Some programs save the parts of a fused tensor as tensors of their own.
    split = {one for one, names in parts.items() if all(spelled(name) in present for name in names)}
    places: dict[str, Place | Stacked] = {}
    stored: dict[str, _Shape] = {}
    for name, shape in shapes.items():
        one, first, total = fused.get(name, (name, 0, 0))
        if total and one not in split:
            places[name] = Place(spelled(one), first, shape[0])
            stored[spelled(one)] = (total, *shape[1:])
        else:
            places[name] = Place(spelled(name))
            stored[spelled(name)] = shape
    for module, stack in spec.stacks().items():
        prefix = module.removesuffix(stack.module)
        own, needed = places_of(stack, prefix, spelled, present)
        places |= own
        stored |= needed
    places.setdefault(f"{spec.head}.weight", Place(spelled(f"{spec.head}.weight")))
    return Layout(places, stored)


def _prefix(names: Collection[str], prefixes: Collection[str], present: Collection[str]) -> str:
    """The prefix with which most of the names are there, the first of equal ones."""
    return max(prefixes, key=lambda prefix: sum(prefix + name in present for name in names))


class Arranged:
    """The tensors of files under the names of a decoder; what it does not read keeps the name that it has there."""

    def __init__(self, files: Source, layout: Layout) -> None:
        self.stored, self._files = files.stored, files
        one, stacks = {}, {}
        for name, place in layout.places.items():
            if isinstance(place, Stacked):
                if all(tensor in self.stored for tensor in place.tensors()):
                    stacks[name] = place
            elif place.tensor in self.stored:
                one[name] = place
        self._places: Mapping[str, Place] = one
        self._stacks: Mapping[str, Stacked] = stacks
        taken = {place.tensor for place in one.values()} | read_names(stacks)
        self.names: tuple[str, ...] = (*one, *stacks, *(name for name in files.names if name not in taken))

    def info(self, name: str) -> TensorInfo:
        """Dtype, shape and size; the name in it is that of the files.

        Raises:
            CheckpointError: no tensor has that name.
        """
        if name in self._stacks:
            return self._stacks[name].info(self._files)
        place = self._places.get(name, Place(name))
        info = self._files.info(place.tensor)
        if place.rows is None:
            return info
        row = info.nbytes // max((1, *info.shape[:1]))
        offset = info.offset + place.first * row
        return replace(info, shape=(place.rows, *info.shape[1:]), offset=offset, nbytes=place.rows * row)

    def files_of(self, name: str) -> tuple[str, ...]:
        """The tensors of the files that a tensor is made of, with `*` for the number of each expert.

        Raises:
            CheckpointError: no tensor has that name.
        """
        if name in self._stacks:
            return tuple(one.replace("{}", "*") for one in self._stacks[name].names)
        return (self.info(name).name,)

    def rows(self, name: str, start: int, stop: int) -> np.ndarray:
        """Rows [start, stop) of the first axis in raw representation, a new array; thread-safe."""
        if name in self._stacks:
            return self._stacks[name].rows(self._files, start, stop)
        place = self._places.get(name, Place(name))
        if place.rows is not None and not 0 <= start <= stop <= place.rows:
            raise IndexError(f"rows {start} to {stop} of {name}, which has {place.rows}")
        return self._files.rows(place.tensor, place.first + start, place.first + stop)
