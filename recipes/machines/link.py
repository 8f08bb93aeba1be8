"""What joins GPUs, and how long a collective takes over it: one formula for each, of latency and bandwidth."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

_SHARES: Mapping[str, tuple[float, float]] = {
    "all_reduce": (1.0, 2.0),
    "all_gather": (0.5, 1.0),
    "reduce_scatter": (0.5, 1.0),
}
"""Of each collective of a group: steps for each further rank, and crossings of the link by each byte."""
_PAIRED = ("send", "recv")


@dataclass(frozen=True)
class Protocol:
    """One way of a library to run collectives: those of low latency reach less bandwidth."""

    start: float
    """Seconds of the smallest message, without the steps."""
    step: float
    """Seconds that each further rank adds to an all_reduce of the smallest message."""
    reached: float
    """Bytes/s of a GPU in one direction: `busbw` of nccl-tests."""

    def seconds(self, collective: str, bytes: int, ranks: int) -> float:
        """Time of a collective of a group; see `Link.seconds`."""
        steps, crossings = _SHARES[collective]
        others = ranks - 1
        return self.start + self.step * steps * others + bytes / self.reached * crossings * others / ranks

    def one_shot(self, bytes: int, ranks: int) -> float:
        """Time of an all_reduce in which each rank reads the whole tensor of every other."""
        return self.start + (self.step + bytes / self.reached) * (ranks - 1)


@dataclass(frozen=True)
class Link:
    """The way between GPUs of a host, or between hosts, as collectives see it.

    Figures were fitted to 2, 4 and 8 ranks. Beyond 8, NCCL goes over to trees, and these times are too long.
    """

    name: str
    """Name of its file, such as "nvlink4"."""
    kind: str
    """What it is: "NVLink switch", "PCIe", "InfiniBand"."""
    bandwidth: float
    """Bytes/s of the data sheet, of one GPU in one direction."""
    send: float
    """Seconds from a send to its receipt, of the smallest message."""
    protocols: tuple[Protocol, ...]
    """NCCL's; it takes the one that is faster for a size."""
    direct: Protocol | None = None
    """Kernels that read the memory of their peers, the one-shot all_reduces of TensorRT-LLM and vLLM; None if they do
    not run on this link or nobody has published figures. llmc calls NCCL."""

    @property
    def reached(self) -> float:
        """Bytes/s of a GPU in one direction that large collectives reach."""
        return max(one.reached for one in self.protocols)

    def seconds(self, collective: str, bytes: int, ranks: int) -> float:
        """Time of a collective (a name of `runtime/plan/between.py` OPS) over `ranks` GPUs by NCCL.

        `bytes` are those of the whole tensor: what is summed, gathered or scattered, of all ranks together, or what is
        sent. One rank alone takes no time. With n ranks it is the least over all protocols of

            all_reduce                   start + step (n - 1)     + bytes / reached * 2 (n - 1) / n
            all_gather, reduce_scatter   start + step (n - 1) / 2 + bytes / reached * (n - 1) / n
            send, recv                   send                     + bytes / reached

        The terms of bandwidth are those by which nccl-tests defines `busbw` (doc/PERFORMANCE.md). An all_reduce is a
        reduce_scatter and an all_gather, so half of its steps belong to each.

        Raises:
            ValueError: there is no such collective.
        """
        if collective not in (*_SHARES, *_PAIRED):
            raise ValueError(f"no collective {collective!r}; there are {', '.join((*_SHARES, *_PAIRED))}")
        if ranks <= 1:
            return 0.0
        if collective in _PAIRED:
            return self.send + bytes / self.reached
        return min(one.seconds(collective, bytes, ranks) for one in self.protocols)

    def seconds_with_peers(self, collective: str, bytes: int, ranks: int) -> float:
        """As `seconds`, of engines that also have one-shot kernels: an all_reduce takes at most
        start + (step + bytes / reached) (n - 1) with the figures of `direct`."""
        time = self.seconds(collective, bytes, ranks)
        if self.direct is None or collective != "all_reduce" or ranks <= 1:
            return time
        return min(time, self.direct.one_shot(bytes, ranks))

    def between_hosts(self, network: Link, gpus: int) -> Link:
        """The link of a group that spans hosts of `gpus` GPUs each, which this link joins inside and `network` between.

        Latencies are the network's. A ring enters and leaves a host once, and a group has as many rings as a host has
        networks, so the bandwidth of a GPU is that of all networks of its host, at most the one inside: NCCL's `busbw`
        over hosts counts so. Sends of a pair have one network: they ask `network` itself.
        """
        return replace(
            network,
            bandwidth=min(self.bandwidth, network.bandwidth * gpus),
            protocols=tuple(replace(one, reached=min(self.reached, one.reached * gpus)) for one in network.protocols),
            direct=None,
        )
