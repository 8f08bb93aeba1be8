"""How files spell the weights of all experts, and how to read those of some of them as one stack.

A decoder reads one stack [E, rows, columns] of each kind. Files have a tensor for each expert, or stacks of other
orders; here are the tensors that a spelling needs, and the experts that are read from them.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass, replace

import numpy as np

from ....runtime.files.safetensors import TensorInfo
from ....runtime.numbers import RAW_DTYPE, to_f32
from ...families.spec import Spelling, Stack
from .source import Source

SCALES = "weight_scale"
"""The suffix of scales, by which a weight in a format is known; `quantize/formats` has it."""
Spelled = Callable[[str], str]
"""The name that files have for a name of the decoder."""


@dataclass(frozen=True)
class Stacked:
    """Where a stack of the decoder lies: one tensor that holds it, or the tensors of its experts."""

    names: tuple[str, ...]
    """Tensors of the files, in the order of a spelling; with `{}` for the number of an expert if they are its own."""
    experts: int
    shape: tuple[int, ...]
    """Of each expert: [rows, columns], of a bias [rows]."""
    turned: bool = False
    pairs: bool = False
    """Two halves of rows are to take turns."""
    dtype: str = ""
    """Of the stack, if it is not that of the files."""

    @property
    def separate(self) -> bool:
        return "{}" in self.names[0]

    def tensors(self) -> Iterator[str]:
        """Every tensor of the files that it needs."""
        for name in self.names:
            yield from (name.format(expert) for expert in range(self.experts)) if self.separate else (name,)

    def info(self, files: Source) -> TensorInfo:
        """Dtype, shape and size of the whole stack; the name is that of a tensor of the files."""
        found = files.info(next(self.tensors()))
        dtype = self.dtype or self._common(files)
        size = int(np.prod(self.shape)) * self.experts * RAW_DTYPE[dtype].itemsize
        return replace(found, dtype=dtype, shape=(self.experts, *self.shape), nbytes=size)

    def _common(self, files: Source) -> str:
        """The dtype that all its tensors have; F32, which holds the numbers of each, if they differ."""
        found = (
            {files.info(name).dtype for name in self.tensors()} if self.separate else {files.info(self.names[0]).dtype}
        )
        return next(iter(found)) if len(found) == 1 else "F32"

    def rows(self, files: Source, start: int, stop: int) -> np.ndarray:
        """The experts from `start` to `stop`, [stop - start, ...], a new array."""
        if not 0 <= start <= stop <= self.experts:
            raise IndexError(f"experts {start} to {stop} of {self.names[0]}, which has {self.experts}")
        if self.separate:
            wide = self._common(files) == "F32"
            made = [self._of(files, expert, wide) for expert in range(start, stop)]
            return np.stack(made) if made else np.empty((0, *self.shape), RAW_DTYPE[self.info(files).dtype])
        read = files.rows(self.names[0], start, stop)
        read = np.moveaxis(read, 1, 2) if self.turned else read.reshape(len(read), *self.shape)
        return np.ascontiguousarray(_take_turns(read, 1) if self.pairs else read)

    def _of(self, files: Source, expert: int, wide: bool) -> np.ndarray:
        infos = [files.info(name.format(expert)) for name in self.names]
        parts = [
            np.asarray(to_f32(rows, info.dtype)) if wide else rows
            for name, info in zip(self.names, infos, strict=True)
            for rows in (files.rows(name.format(expert), 0, info.shape[0]),)
        ]
        return _take_turns(np.concatenate(parts), 0) if self.pairs else np.concatenate(parts)


def _take_turns(array: np.ndarray, axis: int) -> np.ndarray:
    """The first half of an axis and the second, element by element in turn."""
    first, second = np.split(array, 2, axis=axis)
    joined = np.stack([first, second], axis=axis + 1)
    return joined.reshape(array.shape)


def places_of(
    stack: Stack, prefix: str, spelled: Spelled, present: Collection[str]
) -> tuple[dict[str, Stacked], dict[str, tuple[int, ...]]]:
    """Where the tensors of a stack lie, by their names, and the files' tensors with the shapes that they must have.

    Of the spellings the one with the most tensors there is taken, the first of equal ones.
    """
    own = f"{prefix}{stack.module}"
    plain = Spelling((f"{stack.module}.weight",), alternate=True, biases=(f"{stack.module}.bias",))
    options = [_places(stack, one, prefix, own, spelled) for one in (*stack.spellings, plain)]
    return max(options, key=lambda option: sum(name in present for name in option[1]) / len(option[1]))


def _places(
    stack: Stack, spelling: Spelling, prefix: str, own: str, spelled: Spelled
) -> tuple[dict[str, Stacked], dict[str, tuple[int, ...]]]:
    names = [spelled(f"{prefix}{name}") for name in spelling.names]
    biases = tuple(spelled(f"{prefix}{name}") for name in spelling.biases)
    pairs, size = stack.gated and not spelling.alternate, (stack.rows, stack.columns)
    places, shapes = {}, {}
    if spelling.format:
        from ....quantize import FORMATS  # imports torch, which nobody needs to know what other files hold

        layouts = FORMATS[spelling.format].layouts
        for name, part in zip(names, layouts, strict=True):
            shape = part.shape(*size)
            places[f"{own}.{part.suffix}"] = Stacked((name,), stack.experts, shape, pairs=pairs, dtype=part.dtype)
            # codes are stored block by block: [E, rows, blocks, bytes]
            blocks = stack.columns // (FORMATS[spelling.format].block or 1)
            of_blocks = (shape[1] // blocks,) if shape[1] != blocks else ()
            shapes[name] = (stack.experts, stack.rows, blocks, *of_blocks)
    else:
        place = Stacked(tuple(names), stack.experts, size, spelling.turned, pairs)
        places[f"{own}.weight"] = place
        each = (stack.rows // len(names), stack.columns)
        whole = (stack.experts, *(size[::-1] if spelling.turned else size))
        shapes = dict.fromkeys(place.tensors(), each if spelling.separate else whole)
    if stack.bias:
        place = Stacked(biases, stack.experts, (stack.rows,), pairs=pairs)
        places[f"{own}.bias"] = place
        each = (stack.rows // len(biases),)
        shapes |= dict.fromkeys(place.tensors(), each if place.separate else (stack.experts, stack.rows))
    return places, shapes


def stored_formats(stacks: Mapping[str, Stack], names: Collection[str]) -> dict[str, str]:
    """The formats of those stacks, by module, that a source with these `names` has in a weight format already."""
    return {
        module: one.format
        for module, stack in stacks.items()
        for one in stack.spellings
        if one.format and f"{module}.{SCALES}" in names
    }


def read_names(places: Mapping[str, object]) -> set[str]:
    """All tensors of the files that stacks among `places` need."""
    return {name for place in places.values() if isinstance(place, Stacked) for name in place.tensors()}
