"""Which bytes of an engine's files a weight expression reads, so that a rank reads its own and few around them."""

from __future__ import annotations

import math
import mmap
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass

import numpy as np

from ..files.safetensors import TensorInfo
from ..numbers import RAW_DTYPE
from .bind import Concat, Expr, Reshape, Slice, Stored, Times


@dataclass(frozen=True)
class Extents:
    """`count` runs of `nbytes` in a file, the first at `offset`, each `step` after the one before."""

    file: int
    offset: int
    nbytes: int
    step: int
    count: int


def extents(expr: Expr, tensors: Mapping[str, TensorInfo]) -> Iterator[Extents]:
    """The bytes that an expression reads; tensors that the file does not have are left to `evaluate_weight`."""
    if isinstance(expr, Slice) and isinstance(expr.of, Reshape):  # parts of each head: others read the rest of them
        yield from extents(expr.of, tensors)
    elif isinstance(expr, Stored | Slice):
        info = tensors.get(expr.name if isinstance(expr, Stored) else expr.of.name)
        if info is not None:
            yield _of(expr, info)
    elif isinstance(expr, Concat):
        for part in expr.parts:
            yield from extents(part, tensors)
    else:
        yield from extents(expr.of, tensors)
        if isinstance(expr, Times):
            yield from extents(expr.by, tensors)


def _of(expr: Stored | Slice, info: TensorInfo) -> Extents:
    if isinstance(expr, Stored):
        return Extents(info.file, info.offset, info.nbytes, info.nbytes, 1)
    inner = math.prod(expr.of.shape[expr.axis + 1 :]) * RAW_DTYPE[expr.dtype].itemsize
    step = expr.of.shape[expr.axis] * inner
    count = math.prod(expr.of.shape[: expr.axis])
    return Extents(info.file, info.offset + expr.start * inner, (expr.stop - expr.start) * inner, step, count)


def page_runs(parts: Iterable[Extents]) -> dict[int, list[tuple[int, int]]]:
    """The pages with these bytes, by file: runs from one byte to another, ascending, that do not touch."""
    pages: dict[int, list[np.ndarray]] = {}
    for part in parts:
        if part.nbytes:
            starts = part.offset + part.step * np.arange(part.count, dtype=np.int64)
            ends = (starts + part.nbytes - 1) // mmap.PAGESIZE + 1
            pages.setdefault(part.file, []).append(np.stack([starts // mmap.PAGESIZE, ends]))
    return {file: _merged(np.concatenate(runs, axis=1)) for file, runs in pages.items()}


def _merged(runs: np.ndarray) -> list[tuple[int, int]]:
    starts, ends = runs[:, np.argsort(runs[0], kind="stable")]
    reach = np.maximum.accumulate(ends)
    first = np.flatnonzero(np.concatenate([[True], starts[1:] > reach[:-1]]))
    last = np.concatenate([first[1:] - 1, [len(starts) - 1]])
    pairs = zip(starts[first].tolist(), reach[last].tolist(), strict=True)
    return [(start * mmap.PAGESIZE, stop * mmap.PAGESIZE) for start, stop in pairs]
