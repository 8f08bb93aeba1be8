"""Collectives made of turns: how arrays are cut, and in which order parts are added, is equal on all transports."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from enum import IntEnum
from math import prod
from typing import Protocol

import numpy as np

from ...errors import EngineError

_TWO_ROUNDS = 64 * 1024
"""Bytes from which a sum of more than two shards is made part by part and then gathered: each rank then sends and reads
2 bytes for one that it sums, not as many as there are other shards."""


class Kind(IntEnum):
    """What an array is on its way for."""

    SUM = 1
    GATHER = 2
    SCATTER = 3
    MESSAGE = 4


class Exchange(Protocol):
    """A turn: every shard of a TP group gives pieces to all and gets theirs."""

    room: int
    """Bytes that a shard can give to all in a turn."""
    share: int
    """Bytes that it can deal to each."""

    def give(self, stamp: int, piece: np.ndarray, shapes: Sequence[tuple[int, ...]]) -> Sequence[np.ndarray]:
        """Give one piece to all; returns that of every shard, of these shapes."""
        ...

    def deal(self, stamp: int, pieces: Sequence[np.ndarray]) -> Sequence[np.ndarray]:
        """Give each shard its piece; returns what every shard had for this one, each of the shape of its own."""
        ...


class Turns:
    """A `Group` on an exchange."""

    def __init__(self, exchange: Exchange, shard: int, shards: int) -> None:
        self._exchange, self._shard, self._shards = exchange, shard, shards

    def all_reduce(self, x: np.ndarray, out: np.ndarray) -> None:
        data, total = flat(x), flat(out)
        if self._shards > 2 and x.nbytes >= _TWO_ROUNDS:
            sizes = [data.size * (i + 1) // self._shards - data.size * i // self._shards for i in range(self._shards)]
            part = np.empty(sizes[self._shard], x.dtype)
            self.reduce_scatter(data, 0, sizes, part)
            self.all_gather(part, 0, sizes, total)
            return
        mark, step = stamp(Kind.SUM, x.nbytes), self._exchange.room // x.itemsize
        for start in range(0, data.size, step):
            piece = data[start : start + step]
            parts = self._exchange.give(mark, piece, [piece.shape] * self._shards)
            _add(parts, total[start : start + step])

    def all_gather(self, x: np.ndarray, axis: int, sizes: Sequence[int], out: np.ndarray) -> None:
        data, whole = _rows(x, axis), _rows(out, axis)
        mark = stamp(Kind.GATHER, out.nbytes, (axis, *sizes))
        for high, wide, start in self._cuts(out, axis, sizes, self._exchange.room // x.itemsize):
            own = wide[self._shard]
            targets = [whole[high, one] for one in wide]
            piece = data[high, own.start - start : own.stop - start]
            parts = self._exchange.give(mark, piece, [one.shape for one in targets])
            for target, part in zip(targets, parts, strict=True):
                np.copyto(target, part)

    def reduce_scatter(self, x: np.ndarray, axis: int, sizes: Sequence[int], out: np.ndarray) -> None:
        whole, data = _rows(x, axis), _rows(out, axis)
        mark = stamp(Kind.SCATTER, x.nbytes, (axis, *sizes))
        for high, wide, start in self._cuts(x, axis, sizes, self._exchange.share // x.itemsize):
            own = wide[self._shard]
            parts = self._exchange.deal(mark, [whole[high, one] for one in wide])
            _add(parts, data[high, own.start - start : own.stop - start])

    def _cuts(
        self, whole: np.ndarray, axis: int, sizes: Sequence[int], room: int
    ) -> Iterator[tuple[slice, Sequence[slice], int]]:
        """For each turn rows of the whole, columns of every shard, and where this shard's own columns start.

        They are the same on all ranks, and at most `room` elements of each shard.
        """
        inner = prod(whole.shape[axis + 1 :])
        ends = [int(end) for end in np.cumsum([size * inner for size in sizes])]
        starts = [0, *ends[:-1]]
        height, width = prod(whole.shape[:axis]), max(size * inner for size in sizes)
        for high, wide in _pieces(height, width, room):
            columns = [
                slice(min(start + wide.start, end), min(start + wide.stop, end))
                for start, end in zip(starts, ends, strict=True)
            ]
            yield high, columns, starts[self._shard]


def flat(x: np.ndarray) -> np.ndarray:
    """An array as one row, without a copy."""
    if not x.flags.c_contiguous:
        raise ValueError("expected a C-contiguous array")
    return x.reshape(-1)


def stamp(kind: Kind, size: int, cut: Sequence[int] = ()) -> int:
    """What a piece is of, and how that is cut: ranks that disagree would read each other's bytes as something else."""
    return kind << 56 | hash(tuple(cut)) % (1 << 16) << 40 | size


def demand_stamp(found: int, wanted: int) -> None:
    """Check a stamp that another rank has written.

    Raises:
        EngineError: the ranks' programs disagree.
    """
    if found != wanted:
        raise EngineError("cannot exchange arrays between ranks", found=f"{_said(found)} where {_said(wanted)} is due")


def _said(one: int) -> str:
    names = {kind.value: kind.name.lower() for kind in Kind}
    return f"a {names.get(one >> 56, 'thing')} of {one & (1 << 40) - 1} bytes (cut {one >> 40 & 0xFFFF:04x})"


def _rows(x: np.ndarray, axis: int) -> np.ndarray:
    """An array as a matrix whose columns are an axis and all behind it, without a copy."""
    return flat(x).reshape(prod(x.shape[:axis]), prod(x.shape[axis:]))


def _pieces(height: int, width: int, room: int) -> Iterator[tuple[slice, slice]]:
    """Rectangles of at most `room` elements that cover a matrix: whole rows, or parts of one."""
    if 0 < width <= room:
        step = room // width
        yield from ((slice(r, min(r + step, height)), slice(0, width)) for r in range(0, height, step))
    else:
        yield from (
            (slice(r, r + 1), slice(c, min(c + room, width))) for r in range(height) for c in range(0, width, room)
        )


def _add(parts: Sequence[np.ndarray], out: np.ndarray) -> None:
    """The sum in the order of shards: ((0 + 1) + 2) ... No part but the first two may be `out`."""
    np.add(parts[0], parts[1], out=out)
    for part in parts[2:]:
        np.add(out, part, out=out)
