"""The data plane of a rank: one transport for its TP group, and one for each rank it sends to or receives from."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from .communicator import Group, Link


class Mesh:
    """A `Communicator`. Links are made when they are first used."""

    def __init__(self, rank: int, ranks: int, tp: int, group: Group, link: Callable[[int], Link]) -> None:
        self.rank, self.ranks, self.tp = rank, ranks, tp
        self.all_reduce, self.all_gather = group.all_reduce, group.all_gather
        self.reduce_scatter = group.reduce_scatter
        self._make, self._links = link, dict[int, Link]()

    def send(self, x: np.ndarray, peer: int) -> None:
        self._link(peer).send(x)

    def recv(self, out: np.ndarray, peer: int) -> None:
        self._link(peer).recv(out)

    def barrier(self) -> None:
        others = range(1, self.ranks) if self.rank == 0 else (0,)
        if self.rank == 0:
            for other in others:
                self._link(other).wait()
        for other in others:
            self._link(other).post()
        if self.rank:
            self._link(0).wait()

    def _link(self, peer: int) -> Link:
        if peer not in self._links:
            self._links[peer] = self._make(peer)
        return self._links[peer]


def members(rank: int, tp: int) -> Sequence[int]:
    """The ranks of a rank's TP group: rank = stage * tp + shard."""
    return range(rank // tp * tp, rank // tp * tp + tp)
