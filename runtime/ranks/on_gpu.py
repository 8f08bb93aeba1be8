"""Ranks on GPUs: each has the launch plan of its part on one GPU, and exchanges with the others through NCCL."""

from __future__ import annotations

from collections.abc import Sequence

from ..cuda.contents import EngineContents, sources
from ..cuda.device import CudaDevice
from ..engine_file.file import EngineFile
from ..engine_file.split import Split, label_of
from ..errors import LlmcError
from ..files.strict_json import canonical, loads
from ..parallel.job import Job
from ..plan.executor import PagedExecutor, pool_of
from ..plan.plan import Plan
from ..plan.together import caches_of_ranks, part_of_step
from ..progress import debug
from ..scheduling.executor import CacheKind
from .local import Local, Part, Target


class _Peers:
    """The other ranks, for exchanges of GPUs. That rank 0 has ended the job in order aborts none: its own are done."""

    def __init__(self, job: Job) -> None:
        self.local_rank, self.exchange, self._control = job.local_rank, job.exchange, job.control

    def check(self) -> None:
        if self._control.error is not None:
            raise self._control.error


def check(part: Part, split: Split) -> None:
    """Judge the machine code of all ranks, who have the same engine."""
    if part.judge is not None:
        for rank in range(split.ranks):
            part.judge(part.engine, label_of(part.profile, rank))


def load(job: Job, part: Part) -> Local:
    """This rank's part; returns when all ranks have theirs."""
    label = label_of(part.profile, job.rank)

    def make_device(engine: EngineFile, label: str, plan: Plan, slots: int) -> CudaDevice:
        device = CudaDevice(EngineContents(engine, label), plan, slots, peers=_Peers(job))
        job.control.when_failed(device.abort)  # a call of NCCL may wait for a rank that is gone
        return device

    debug(4, lambda: sources(part.engine, label))
    own = PagedExecutor(part.engine, label, make_device, max_batch=part.max_batch)
    try:
        caches = caches_of_ranks([_read(given) for given in job.exchange(_written(own.caches))])
    except BaseException:
        own.close()
        raise
    return Local(
        own,
        caches,
        lambda: pool_of(caches),
        samples_everywhere=True,
        own=lambda step: part_of_step(step, caches, own.caches),
    )


TARGET = Target(check, load)


def _written(caches: Sequence[CacheKind]) -> bytes:
    return canonical([[one.blocks, one.positions, one.window] for one in caches])


def _read(given: bytes) -> list[CacheKind]:
    return [CacheKind(*one) for one in loads(given, what="the caches of a rank", error=LlmcError)]
