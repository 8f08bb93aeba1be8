"""What an executor of ranks asks of the data plane."""

from __future__ import annotations

from collections.abc import Callable, Sequence
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
    hosts: Sequence[int]
    """A number for each rank of the job, equal for those that share memory."""

    def send(self, x: np.ndarray, peer: int) -> None:
        """A message to a rank of the job; returns while it still computes, up to a few messages."""
        ...

    def recv(self, out: np.ndarray, peer: int) -> None:
        """The next message of a rank, whose shape and dtype are those of `out`."""
        ...

    def barrier(self) -> None:
        """Returns when every rank of the job has called it."""
        ...


class Alone:
    """The TP group of one rank."""

    def all_reduce(self, x: np.ndarray, out: np.ndarray) -> None:
        np.copyto(out, x)

    def all_gather(self, x: np.ndarray, axis: int, sizes: Sequence[int], out: np.ndarray) -> None:
        np.copyto(out, x)

    def reduce_scatter(self, x: np.ndarray, axis: int, sizes: Sequence[int], out: np.ndarray) -> None:
        np.copyto(out, x)
