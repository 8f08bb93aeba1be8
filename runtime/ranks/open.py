"""Opens a profile that is split over ranks: starts or joins its job, and has every rank load its own part."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Mapping
from importlib.metadata import version
from typing import Any

from ..cpu.executor import CpuExecutor, thread_count
from ..cpu.pool import SlotPool
from ..cpu.slots import buffer_shape
from ..engine_file.file import EngineFile
from ..engine_file.ranks import caches_of, split_of
from ..engine_file.split import Split, label_of
from ..environment import launched
from ..errors import DISTRIBUTION, Unsupported
from ..machine import system_memory
from ..parallel.job import Job
from ..parallel.meet import join
from ..parallel.start import spawn
from ..scheduling.executor import Executor
from .executor import RanksExecutor, SharedSlots
from .messages import StepReader, write_outputs


def open_ranks(engine: EngineFile, profile: str, *, threads: int | None, max_batch: int | None) -> Executor:
    """Rank 0's executor of a split profile, once all ranks have loaded; it then owns `engine`.

    The other ranks are processes that this one starts; or, if a launcher has started this process (RANK and WORLD_SIZE
    are set), those that it has started. Ranks above 0 of a launcher serve until rank 0 closes its engine, and then
    this function ends their process.

    Raises:
        LlmcError: a rank cannot load, or does not come, or has another engine or profile.
        SystemExit: this is a rank above 0, and the job is over.
    """
    split = split_of(engine.profile(profile), str(engine.path))
    if engine.profile(profile).target != "cpu":
        raise Unsupported(f"cannot run profile {profile!r} of {engine.path}", found="several ranks of a GPU's target")
    place = launched()
    if place is None:
        told = {"path": str(engine.path.absolute()), "profile": profile, "threads": threads, "max_batch": max_batch}
        job = spawn(serve, told, ranks=split.ranks, tp=split.tp)
    else:
        job = join(place, ranks=split.ranks, tp=split.tp, profile=profile)
    if job.rank:
        with job, engine:
            _serve(job, engine, profile, split, threads, max_batch)
        raise SystemExit(0)
    try:
        return _lead(job, engine, profile, split, threads, max_batch)
    except BaseException as problem:
        error = job.fail(problem)
        job.close()
        raise error from None


def serve(job: Job, arguments: Mapping[str, Any]) -> None:
    """A rank above 0 that rank 0 has started on its machine, until the job is over."""
    with EngineFile.open(arguments["path"]) as engine:
        profile = arguments["profile"]
        split = split_of(engine.profile(profile), str(engine.path))
        _serve(job, engine, profile, split, arguments["threads"], arguments["max_batch"])


def _load(
    job: Job, engine: EngineFile, profile: str, split: Split, threads: int | None, max_batch: int | None
) -> CpuExecutor:
    """This rank's part; returns when all ranks have theirs."""
    job.agree(
        {
            "engine": engine.manifest.content_digest,
            "llmc": version(DISTRIBUTION),
            "max_batch": max_batch or 0,
            "profile": profile,
            "ranks": split.ranks,
        }
    )
    neighbours = job.communicator.neighbours
    local = CpuExecutor(
        engine,
        label_of(profile, job.rank),
        threads=max(1, thread_count(threads) // neighbours),
        max_batch=max_batch,
        exchange=job.communicator,
        neighbours=neighbours,
        samples=split.shard(job.rank) == 0,
    )
    job.communicator.barrier()
    return local


def _lead(
    job: Job, engine: EngineFile, profile: str, split: Split, threads: int | None, max_batch: int | None
) -> Executor:
    local = _load(job, engine, profile, split, threads, max_batch)
    slots = SharedSlots(local.slots, job, _bytes_of(engine, profile, split))

    def pool() -> SlotPool:
        return SlotPool(slots, local.sequences, lambda: system_memory().available)

    return RanksExecutor(local, job, split, pool, slots.arrange)


def _bytes_of(engine: EngineFile, profile: str, split: Split) -> Callable[[int], int]:
    """Bytes of a sequence's keys and values on all ranks, which may be on one machine."""
    model = engine.manifest.model
    caches = [
        cache
        for rank in range(split.ranks)
        for cache in caches_of(engine.profile(label_of(profile, rank)), model).values()
    ]
    return lambda positions: 8 * sum(math.prod(buffer_shape(cache, positions)) for cache in caches)


def _serve(
    job: Job, engine: EngineFile, profile: str, split: Split, threads: int | None, max_batch: int | None
) -> None:
    """Compute this rank's part of every step that rank 0 tells."""
    local = _load(job, engine, profile, split, threads, max_batch)
    samples = split.pp > 1 and job.rank == split.rank(split.pp - 1, 0)
    reader, tickets = StepReader(), deque[Any]()
    while (frame := job.receive()) is not None:
        header = frame.header
        match frame.kind:
            case "step":
                tickets.append(local.submit(reader.read(header, frame.arrays)))
                while len(tickets) > local.depth:
                    outputs = local.collect(tickets.popleft())
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
    local.close()
