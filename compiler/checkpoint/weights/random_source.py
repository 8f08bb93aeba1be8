"""Random weights from a seed, so that a model of any size can be built and measured from its config.json alone."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from math import prod
from statistics import NormalDist

import numpy as np

from ....runtime.errors import CheckpointError, nearest
from ....runtime.files.safetensors import TensorInfo
from ....runtime.machine import cpu_count
from ....runtime.numbers import RAW_DTYPE, f32_to_bf16

_LEVELS = 1 << 16
"""Entries of the table of normal values."""
_PER_COUNT = 16
"""16-bit numbers that Philox4x64 gives for one value of its counter."""
_PIECE = 1 << 20
"""Elements that a core makes at once: its temporary memory stays under 16 MiB."""


class RandomSource:
    """Tensors of the given shapes, normal with standard deviation `initializer_range`, cut off at 4.3 deviations.

    One-dimensional tensors are ones (norm weights), or zeros if their name ends in ".bias". An element depends only on
    seed, tensor name and position, not on which rows one call reads. `dtype` is BF16, F16 or F32.
    """

    def __init__(
        self,
        shapes: Mapping[str, tuple[int, ...]],
        *,
        dtype: str = "BF16",
        seed: int = 0,
        initializer_range: float = 0.02,
    ) -> None:
        size = RAW_DTYPE[dtype].itemsize
        self._infos = {name: TensorInfo(name, dtype, shape, 0, prod(shape) * size) for name, shape in shapes.items()}
        self.stored: Mapping[str, TensorInfo] = self._infos
        self._seed, self._dtype, self._scale = seed, dtype, initializer_range
        self.names: tuple[str, ...] = tuple(self._infos)

    def info(self, name: str) -> TensorInfo:
        """Dtype, shape and size of a tensor; the offset is 0.

        Raises:
            CheckpointError: no tensor has that name.
        """
        info = self._infos.get(name)
        if info is None:
            raise CheckpointError(
                f"cannot find tensor {name!r} in the random weights", found=f"no such name{nearest(name, self.names)}"
            )
        return info

    def files_of(self, name: str) -> tuple[str, ...]:
        return (self.info(name).name,)

    def rows(self, name: str, start: int, stop: int) -> np.ndarray:
        """Rows [start, stop) in raw representation, a new array [stop - start, ...]."""
        shape = self.info(name).shape or (1,)  # a scalar counts as one row
        if not 0 <= start <= stop <= shape[0]:
            raise IndexError(f"rows {start} to {stop} of {name}, which has {shape[0]}")
        out = np.empty((stop - start, *shape[1:]), RAW_DTYPE[self._dtype])
        if len(shape) == 1:
            out[...] = _raw(np.array([0.0 if name.endswith(".bias") else 1.0]), self._dtype)
            return out
        digest = hashlib.sha256(f"{self._seed}\n{name}".encode()).digest()
        key = int.from_bytes(digest[:16], "little")
        table = _normal_table(self._dtype, self._scale)
        width = prod(shape[1:])
        counts = -(-width // _PER_COUNT)
        flat = out.reshape(stop - start, width)
        step = max(1, _PIECE // max(width, 1))

        def fill(first: int) -> None:
            piece = flat[first : first + step]
            generator = np.random.Generator(np.random.Philox(key=key, counter=(start + first) * counts))
            bits = generator.integers(0, 1 << 64, size=len(piece) * counts * 4, dtype=np.uint64).view("<u2")
            piece[...] = np.take(table, bits.reshape(len(piece), counts * _PER_COUNT)[:, :width])

        with ThreadPoolExecutor(cpu_count()) as pool:  # one core makes 0.2 GB/s, slower than a build reads
            list(pool.map(fill, range(0, stop - start, step)))
        return out


@cache
def _normal_table(dtype: str, scale: float) -> np.ndarray:
    """Raw values at 65536 equally likely quantiles of the normal distribution."""
    normal = NormalDist(0.0, 1.0)
    upper = [normal.inv_cdf(0.5 + (place + 0.5) / _LEVELS) for place in range(_LEVELS // 2)]
    half = np.array(upper) * scale
    return _raw(np.concatenate([-half[::-1], half]), dtype)


def _raw(values: np.ndarray, dtype: str) -> np.ndarray:
    single = values.astype(np.float32)
    return f32_to_bf16(single) if dtype == "BF16" else single.astype(RAW_DTYPE[dtype])
