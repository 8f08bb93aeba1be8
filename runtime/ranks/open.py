"""Opens a profile that is split over ranks: starts or joins its job, and has every rank load its own part."""

from __future__ import annotations

import atexit
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import version
from typing import Any

from ..cpu.executor import CpuExecutor, thread_count
from ..cpu.pool import SlotPool
from ..cpu.slots import buffer_shape
from ..engine_file.file import EngineFile
from ..engine_file.ranks import caches_of, split_of
from ..engine_file.split import Split, label_of
from ..environment import launched
from ..errors import DISTRIBUTION, RecipeError
from ..machine import system_memory
from ..parallel.job import Job
from ..parallel.meet import join
from ..parallel.start import spawn
from ..progress import debug_level, set_debug_level, speak_as
from ..scheduling.executor import Executor, sequence_count
from .checks import check_programs
from .executor import RanksExecutor, SharedSlots, ending
from .messages import StepReader, write_outputs

_led = False
"""A launcher's ranks have served this process: then they are gone."""


@dataclass(frozen=True)
class _Part:
    """What each rank loads its part of."""

    engine: EngineFile
    profile: str
    threads: int | None
    max_batch: int | None

    @property
    def split(self) -> Split:
        return split_of(self.engine.profile(self.profile), str(self.engine.path))


@dataclass(frozen=True)
class _Told:
    """What a rank is told that this process starts."""

    path: str
    profile: str
    threads: int | None
    max_batch: int | None
    debug: int


def open_ranks(engine: EngineFile, profile: str, *, threads: int | None, max_batch: int | None) -> Executor:
    """Rank 0's executor of a split profile, once all ranks have loaded; it then owns `engine`.

    The other ranks are processes that this one starts; or, if a launcher has started this process (RANK and WORLD_SIZE
    are set), those that it has started. Ranks above 0 of a launcher serve until rank 0 closes its engine, and then
    this function ends their process.

    Raises:
        LlmcError: a rank cannot load, or does not come, or has another engine or profile.
        RecipeError: this process has led the ranks of a launcher before.
        SystemExit: this is a rank above 0, and the job is over.
    """
    part = _Part(engine, profile, threads, max_batch)
    sequence_count(max_batch, engine.profile(profile).max_batch)  # before processes are started
    job = _job(part)
    if job.rank:
        speak_as(f"rank {job.rank}")
        with job, engine:
            _serve(job, part)
        raise SystemExit(0)
    try:
        return _lead(job, part)
    except BaseException as problem:
        error = ending(job, problem)
        job.close()
        raise error from None


def serve(job: Job, arguments: Mapping[str, Any]) -> None:
    """A rank above 0 that rank 0 has started on its machine, until the job is over."""
    told = _Told(**arguments)
    set_debug_level(str(told.debug))
    speak_as(f"rank {job.rank}")
    with EngineFile.open(told.path) as engine:
        _serve(job, _Part(engine, told.profile, told.threads, told.max_batch))


def _job(part: _Part) -> Job:
    """The job of this process, whose other ranks are started here or have been by a launcher."""
    global _led
    split, place = part.split, launched()
    if place is None:
        told = _Told(str(part.engine.path.absolute()), part.profile, part.threads, part.max_batch, debug_level())
        return spawn(serve, asdict(told), ranks=split.ranks, tp=split.tp)
    if _led:
        raise RecipeError(
            f"cannot load profile {part.profile!r} of {part.engine.path}",
            found="a launcher's ranks serve one engine, and they have",
            fix="without a launcher, each engine starts ranks of its own on this machine",
        )
    job = join(place, ranks=split.ranks, tp=split.tp, profile=part.profile)
    _led = True
    return job


def _load(job: Job, part: _Part) -> CpuExecutor:
    """This rank's part; returns when all ranks have theirs."""
    engine, split = part.engine, part.split
    if job.rank == 0:
        check_programs(engine, part.profile, split)
    job.agree(
        {
            "engine": engine.manifest.content_digest,
            "llmc": version(DISTRIBUTION),
            "max_batch": part.max_batch or 0,
            "profile": part.profile,
            "ranks": split.ranks,
        }
    )
    hosts = job.communicator.hosts
    neighbours = hosts.count(hosts[job.rank])
    local = CpuExecutor(
        engine,
        label_of(part.profile, job.rank),
        threads=max(1, thread_count(part.threads) // neighbours),
        max_batch=part.max_batch,
        exchange=job.communicator,
        neighbours=neighbours,
        samples=split.shard(job.rank) == 0,
        checked=job.communicator.barrier,  # what one takes must not be missing when another looks for free memory
    )
    job.communicator.barrier()
    return local


def _lead(job: Job, part: _Part) -> Executor:
    local = _load(job, part)
    slots = SharedSlots(local.slots, job, _bytes_of(part, job.communicator.hosts))

    def pool() -> SlotPool:
        return SlotPool(slots, local.sequences, lambda: system_memory().available)

    atexit.unregister(job.close)  # the executor's owner closes it, when no thread computes any more
    return RanksExecutor(local, job, part.split, pool, slots.arrange)


def _bytes_of(part: _Part, hosts: Sequence[int]) -> Callable[[int], int]:
    """Bytes of a sequence's keys and values on the machine with most of them, for which rank 0's stands."""
    engine, model = part.engine, part.engine.manifest.model
    ranks = [caches_of(engine.profile(label_of(part.profile, rank)), model) for rank in range(len(hosts))]
    machines = [
        [cache for caches, at in zip(ranks, hosts, strict=True) if at == host for cache in caches.values()]
        for host in {*hosts}
    ]

    def bytes_of(positions: int) -> int:
        return max(8 * sum(math.prod(buffer_shape(cache, positions)) for cache in caches) for caches in machines)

    return bytes_of


def _serve(job: Job, part: _Part) -> None:
    """Compute this rank's part of every step that rank 0 tells."""
    local, split = _load(job, part), part.split
    samples = split.pp > 1 and job.rank == split.rank(split.pp - 1, 0)
    reader = StepReader()
    while (frame := job.receive()) is not None:
        header = frame.header
        match frame.kind:
            case "step":
                outputs = local.collect(local.submit(reader.read(header, frame.arrays)))
                part.engine.demand_unchanged()
                if samples:
                    job.send("outputs", *write_outputs(outputs))
            case "release":
                reader.release(header["sequence"])
                local.release(header["sequence"])
            case "commit":
                local.slots.commit(header["block"], header["positions"])
            case "keep":
                local.slots.keep(header["blocks"])
            case "arrange":
                local.slots.together(header["blocks"])
            case other:
                raise AssertionError(f"no message {other!r}")
    local.close()
