"""Which bytes of an engine's files a weight expression reads, so that a rank reads its own and few around them."""

from __future__ import annotations

import math
import mmap
from collections.abc import Iterable, Iterator, Mapping, Sequence
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
    if isinstance(expr, Stored | Slice):
        leaf, spans = _box(expr)
        if isinstance(leaf, Reshape):  # parts of each head: others read the rest of them
            yield from extents(leaf, tensors)
        elif leaf.name in tensors:
            info = tensors[leaf.name]
            yield from _runs(leaf.shape, spans, RAW_DTYPE[leaf.dtype].itemsize, info.file, info.offset)
    elif isinstance(expr, Concat):
        for part in expr.parts:
            yield from extents(part, tensors)
    else:
        yield from extents(expr.of, tensors)
        if isinstance(expr, Times):
            yield from extents(expr.by, tensors)


def _box(expr: Stored | Slice | Reshape) -> tuple[Stored | Reshape, list[tuple[int, int]]]:
    """What slices of slices are cut from, and what they read of each of its axes."""
    if not isinstance(expr, Slice):
        return expr, [(0, size) for size in expr.shape]
    leaf, spans = _box(expr.of)
    first, _ = spans[expr.axis]
    spans[expr.axis] = first + expr.start, first + expr.stop
    return leaf, spans


def _runs(
    shape: tuple[int, ...], spans: Sequence[tuple[int, int]], item: int, file: int, offset: int
) -> Iterator[Extents]:
    """A box of a tensor: as one row of runs if one axis is cut, else as one for each element of the first such axis."""
    cut = [axis for axis, (span, size) in enumerate(zip(spans, shape, strict=True)) if span != (0, size)]
    if not cut:
        nbytes = math.prod(shape) * item
        yield Extents(file, offset, nbytes, nbytes, 1)
        return
    first, (start, stop) = cut[0], spans[cut[0]]
    inner = math.prod(shape[first + 1 :]) * item
    step, count = shape[first] * inner, math.prod(shape[:first])
    if len(cut) == 1:
        yield Extents(file, offset + start * inner, (stop - start) * inner, step, count)
        return
    for before in range(count):
        for at in range(start, stop):
            yield from _runs(shape[first + 1 :], spans[first + 1 :], item, file, offset + before * step + at * inner)


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
