"""The data plane of a rank: one transport for its TP group, and one for each rank it sends to or receives from."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from .communicator import Alone, Link
from .gloo import Gloo, GlooExchange, GlooLink
from .memory import SharedMemory
from .shared import SharedExchange, SharedLink
from .turns import Turns


class Mesh:
    """A `Communicator`. Links are made when they are first used."""

    def __init__(
        self, rank: int, tp: int, hosts: Sequence[int], memory: SharedMemory | None, gloo: Gloo | None = None
    ) -> None:
        """`hosts` has a number for each rank of the job, equal for ranks that share memory.

        There is memory if another rank has this rank's number, and gloo if one has another.
        """
        self.rank, self.ranks, self.tp = rank, len(hosts), tp
        self.hosts = hosts
        self._memory, self._gloo, self._links = memory, gloo, dict[int, Link]()
        members = range(rank // tp * tp, rank // tp * tp + tp)  # rank = stage * tp + shard
        if tp == 1:
            group = Alone()
        elif len({hosts[member] for member in members}) == 1:
            assert memory is not None
            group = Turns(SharedExchange(memory, members, rank), rank % tp, tp)
        else:
            assert gloo is not None
            group = Turns(GlooExchange(gloo, members, rank), rank % tp, tp)
        self.all_reduce, self.all_gather = group.all_reduce, group.all_gather
        self.reduce_scatter = group.reduce_scatter

    def send(self, x: np.ndarray, peer: int) -> None:
        self._link(peer).send(x)

    def recv(self, out: np.ndarray, peer: int) -> None:
        self._link(peer).recv(out)

    def barrier(self) -> None:
        if self.rank:
            self._link(0).post()
            self._link(0).wait()
            return
        for other in range(1, self.ranks):
            self._link(other).wait()
        for other in range(1, self.ranks):
            self._link(other).post()

    def close(self) -> None:
        """Give back what no rank uses any more."""
        self._links.clear()
        if self._gloo is not None:
            self._gloo.close()
        if self._memory is not None:
            self._memory.close()

    def _link(self, peer: int) -> Link:
        if peer not in self._links:
            if self.hosts[peer] == self.hosts[self.rank]:
                assert self._memory is not None
                self._links[peer] = SharedLink(self._memory, self.rank, peer)
            else:
                assert self._gloo is not None
                self._links[peer] = GlooLink(self._gloo, peer)
        return self._links[peer]
