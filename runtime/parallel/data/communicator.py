"""What an executor of ranks asks of the data plane, and the arithmetic that all its implementations share."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from math import prod
from typing import Protocol

import numpy as np

Check = Callable[[], None]
"""Raises the job's error if the job is over; every wait of the data plane calls it a few times a second."""


class Group(Protocol):
    """Collectives of the ranks of one TP group, which all call the same ones in the same order."""

    def all_reduce(self, x: np.ndarray, out: np.ndarray) -> None:
        """The sum of every shard's x, added in the order of shards; `out` may be x."""
        ...

    def all_gather(self, x: np.ndarray, axis: int, sizes: Sequence[int], out: np.ndarray) -> None:
        """Every shard's x, joined along an axis; shard i has sizes[i] of it."""
        ...

    def reduce_scatter(self, x: np.ndarray, axis: int, sizes: Sequence[int], out: np.ndarray) -> None:
        """Of the sum of every shard's x, added in the order of shards, the part of this shard: sizes[shard]."""
        ...


class Link(Protocol):
    """Messages between this rank and one other, in order."""

    def send(self, x: np.ndarray) -> None:
        """Returns while the other still computes, up to a few messages."""
        ...

    def recv(self, out: np.ndarray) -> None: ...

    def post(self) -> None:
        """One signal of a barrier, which passes messages by."""
        ...

    def wait(self) -> None:
        """One signal of the other."""
        ...


class Communicator(Group, Protocol):
    """The data plane of one rank. Arrays are C-contiguous; float sums have the same bits on every transport.

    All methods raise the job's LlmcError if the job ends while they wait, and EngineError if two ranks disagree about
    the size of a message.
    """

    rank: int
    ranks: int
    tp: int

    def send(self, x: np.ndarray, peer: int) -> None:
        """A message to a rank of the job; returns while it still computes, up to a few messages."""
        ...

    def recv(self, out: np.ndarray, peer: int) -> None:
        """The next message of a rank, whose shape and dtype are those of `out`."""
        ...

    def barrier(self) -> None:
        """Returns when every rank of the job has called it."""
        ...


def flat(x: np.ndarray) -> np.ndarray:
    """An array as one row, without a copy."""
    if not x.flags.c_contiguous:
        raise ValueError("expected a C-contiguous array")
    return x.reshape(-1)


def rows(x: np.ndarray, axis: int) -> np.ndarray:
    """An array as a matrix whose columns are an axis and all behind it, without a copy."""
    return flat(x).reshape(prod(x.shape[:axis]), -1 if x.size else 0)


def columns(x: np.ndarray, axis: int, sizes: Sequence[int]) -> tuple[int, ...]:
    """Where each shard's columns end in `rows` of the whole; x is the whole or a part of it."""
    inner = prod(x.shape[axis + 1 :])
    ends = np.cumsum([size * inner for size in sizes])
    return tuple(int(end) for end in ends)


def even(size: int, shards: int) -> tuple[int, ...]:
    """Sizes of the shards' parts of a row, for a sum in two rounds."""
    return tuple(size * (i + 1) // shards - size * i // shards for i in range(shards))


def pieces(height: int, width: int, room: int) -> Iterator[tuple[slice, slice]]:
    """Rectangles of at most `room` elements that cover a matrix: whole rows, or parts of one."""
    if 0 < width <= room:
        step = room // width
        yield from ((slice(r, min(r + step, height)), slice(0, width)) for r in range(0, height, step))
    else:
        yield from (
            (slice(r, r + 1), slice(c, min(c + room, width))) for r in range(height) for c in range(0, width, room)
        )


def add_in_order(parts: Sequence[np.ndarray], out: np.ndarray) -> None:
    """The sum from the first part to the last: ((0 + 1) + 2) ... `out` may be one of the first two."""
    if len(parts) == 1:
        np.copyto(out, parts[0])
        return
    np.add(parts[0], parts[1], out=out)
    for part in parts[2:]:
        np.add(out, part, out=out)


class Alone:
    """The TP group of one rank."""

    def all_reduce(self, x: np.ndarray, out: np.ndarray) -> None:
        np.copyto(out, x)

    def all_gather(self, x: np.ndarray, axis: int, sizes: Sequence[int], out: np.ndarray) -> None:
        np.copyto(out, x)

    def reduce_scatter(self, x: np.ndarray, axis: int, sizes: Sequence[int], out: np.ndarray) -> None:
        np.copyto(out, x)
