"""Ranks on CPUs: what rank 0's pool decides about its slots is told to all ranks, whose slots stay the same."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence

from ..cpu.executor import CpuExecutor, thread_count
from ..cpu.pool import SlotPool
from ..cpu.slots import SlotCaches, sequence_bytes
from ..engine_file.ranks import caches_of
from ..engine_file.split import Split, label_of
from ..machine import system_memory
from ..parallel.job import Job
from .checks import check_programs
from .local import Local, Part, Target
from .messages import Step


def check(part: Part, split: Split) -> None:
    check_programs(part.engine, part.profile, split)


def load(job: Job, part: Part) -> Local:
    """This rank's part; returns when all ranks have theirs."""
    hosts = job.communicator.hosts
    neighbours = hosts.count(hosts[job.rank])
    own = CpuExecutor(
        part.engine,
        label_of(part.profile, job.rank),
        threads=max(1, thread_count(part.threads) // neighbours),
        max_batch=part.max_batch,
        exchange=job.communicator,
        neighbours=neighbours,
        samples=part.split.shard(job.rank) == 0,
        checked=job.communicator.barrier,  # what one takes must not be missing when another looks for free memory
    )
    job.communicator.barrier()
    slots = SharedSlots(own.slots, job, _bytes_of(part, hosts))
    return Local(
        own,
        own.caches,
        lambda: SlotPool(slots, own.sequences, lambda: system_memory().available),
        samples_everywhere=False,
        arrange=slots.arrange,
        messages={
            "commit": lambda header: own.slots.commit(header["block"], header["positions"]),
            "keep": lambda header: own.slots.keep(header["blocks"]),
            "arrange": lambda header: own.slots.together(header["blocks"]),
        },
    )


TARGET = Target(check, load)


def _bytes_of(part: Part, hosts: Sequence[int]) -> Callable[[int], int]:
    """Bytes of a sequence's keys and values on the machine with most of them, for which rank 0's stands."""
    engine, model = part.engine, part.engine.manifest.model
    ranks = [caches_of(engine.profile(label_of(part.profile, rank)), model) for rank in range(len(hosts))]
    machines = [
        [cache for caches, at in zip(ranks, hosts, strict=True) if at == host for cache in caches.values()]
        for host in {*hosts}
    ]

    def bytes_of(positions: int) -> int:
        return max(sequence_bytes(caches, positions) for caches in machines)

    return bytes_of


class SharedSlots:
    """The slots of rank 0 for a pool; what it changes there is told to all ranks, whose slots stay the same."""

    def __init__(self, own: SlotCaches, job: Job, bytes_of: Callable[[int], int]) -> None:
        """`bytes_of` gives the memory of a sequence's keys and values on the machine that has most of it."""
        self._own, self._job, self._bytes_of = own, job, bytes_of

    def bytes(self, positions: int) -> int:
        return self._bytes_of(positions)

    def filled(self, block: int) -> int:
        return self._own.filled(block)

    def holds(self, block: int, length: int) -> bool:
        return self._own.holds(block, length)

    def commit(self, block: int, positions: int) -> None:
        before = self._own.arrays
        self._own.commit(block, positions)
        if self._own.arrays is not before:
            self._job.broadcast("commit", {"block": block, "positions": positions})

    def keep(self, blocks: Collection[int]) -> None:
        before = self._own.arrays
        self._own.keep(blocks)
        if self._own.arrays is not before:
            self._job.broadcast("keep", {"blocks": sorted(blocks)})

    def arrange(self, step: Step) -> Step:
        """The step in the order of its slots, which are adjacent afterwards."""
        before, blocks = self._own.blocks, [one.blocks[0][0] for one in step]
        self._own.together(blocks)
        if self._own.blocks != before:
            self._job.broadcast("arrange", {"blocks": blocks})
        return tuple(sorted(step, key=lambda one: self._own.slot(one.blocks[0][0])))
