"""Sources of weights: the protocol of names, shapes and rows, and the source that reads safetensors files."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol

import numpy as np

from ....runtime.errors import CheckpointError, nearest
from ....runtime.files.safetensors import TensorInfo
from ....runtime.numbers import RAW_DTYPE
from ..folder import OpenFile


class Source(Protocol):
    """A source of weights: the files of a checkpoint, or random numbers."""

    names: tuple[str, ...]
    stored: Mapping[str, TensorInfo]
    """Every tensor as the files have it, by the name that it has there."""

    def info(self, name: str) -> TensorInfo:
        """Dtype and shape of a tensor; the name in it is that of the files.

        Raises:
            CheckpointError: no tensor has that name; suggests the nearest name.
        """
        ...

    def rows(self, name: str, start: int, stop: int) -> np.ndarray:
        """Rows [start, stop) of the first axis in raw representation, a new array; thread-safe."""
        ...

    def files_of(self, name: str) -> tuple[str, ...]:
        """The tensors of the files that a tensor is made of, with `*` for the number of each expert.

        Raises:
            CheckpointError: no tensor has that name.
        """
        ...


class FileSource:
    """Tensors of safetensors files, read with pread, because mapped pages would count as memory of this process."""

    def __init__(self, tensors: Mapping[str, tuple[OpenFile, TensorInfo]]) -> None:
        self._tensors = dict(tensors)
        self.names: tuple[str, ...] = tuple(self._tensors)
        self.stored: Mapping[str, TensorInfo] = {name: info for name, (_, info) in self._tensors.items()}

    def _find(self, name: str) -> tuple[OpenFile, TensorInfo]:
        found = self._tensors.get(name)
        if found is None:
            raise CheckpointError(
                f"cannot find tensor {name!r} in the checkpoint", found=f"no such name{nearest(name, self.names)}"
            )
        return found

    def info(self, name: str) -> TensorInfo:
        return self._find(name)[1]

    def files_of(self, name: str) -> tuple[str, ...]:
        return (self.info(name).name,)

    def rows(self, name: str, start: int, stop: int) -> np.ndarray:
        """Rows [start, stop); a scalar counts as one row and gives an array [1]."""
        opened, info = self._find(name)
        count, *rest = info.shape or (1,)
        if not 0 <= start <= stop <= count:
            raise IndexError(f"rows {start} to {stop} of {name}, which has {count}")
        out = np.empty((stop - start, *rest), RAW_DTYPE[info.dtype])
        if out.nbytes:
            row = info.nbytes // count
            opened.read_into(out.reshape(-1).view(np.uint8).data, info.offset + start * row)
        return out
