"""Opens a profile that is split over ranks: starts or joins its job, and has every rank load its own part."""

from __future__ import annotations

import atexit
from collections import deque
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

from ..chips import SM
from ..engine_file.file import EngineFile
from ..environment import launched
from ..errors import DISTRIBUTION, RecipeError
from ..parallel.job import Job
from ..parallel.meet import join
from ..parallel.start import spawn
from ..progress import debug_level, set_debug_level, speak_as
from ..scheduling.executor import Executor, sequence_count
from .executor import RanksExecutor, ending
from .local import Local, Part, Target
from .messages import Step, StepReader, write_outputs

if TYPE_CHECKING:
    from ..cuda.trust import Judge

_led = False
"""A launcher's ranks have served this process: then they are gone."""


@dataclass(frozen=True)
class _Told:
    """What a rank is told that this process starts."""

    path: str
    profile: str
    threads: int | None
    max_batch: int | None
    debug: int


def open_ranks(
    engine: EngineFile, profile: str, *, threads: int | None, max_batch: int | None, judge: Judge | None = None
) -> Executor:
    """Rank 0's executor of a split profile, once all ranks have loaded; it then owns `engine`.

    The other ranks are processes that this one starts; or, if a launcher has started this process (RANK and WORLD_SIZE
    are set), those that it has started. Ranks above 0 of a launcher serve until rank 0 closes its engine, and then
    this function ends their process. `judge` sees the machine code of all ranks before a device does.

    Raises:
        LlmcError: a rank cannot load, or does not come, or has another engine or profile.
        RecipeError: this process has led the ranks of a launcher before.
        SystemExit: this is a rank above 0, and the job is over.
    """
    part = Part(engine, profile, threads, max_batch, judge)
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
        _serve(job, Part(engine, told.profile, told.threads, told.max_batch))


def _job(part: Part) -> Job:
    """The job of this process, whose other ranks are started here or have been by a launcher."""
    global _led
    split, place = part.split, launched()
    if place is None:
        told = _Told(str(part.engine.path.absolute()), part.profile, part.threads, part.max_batch, debug_level())
        return spawn(serve, asdict(told), ranks=split.ranks, tp=split.shards)
    if _led:
        raise RecipeError(
            f"cannot load profile {part.profile!r} of {part.engine.path}",
            found="a launcher's ranks serve one engine, and they have",
            fix="without a launcher, each engine starts ranks of its own on this machine",
        )
    job = join(place, ranks=split.ranks, tp=split.shards, profile=part.profile)
    _led = True
    return job


def _target(name: str) -> Target:
    if name in SM:
        from .on_gpu import TARGET
    else:
        from .on_cpu import TARGET
    return TARGET


def _load(job: Job, part: Part) -> Local:
    """This rank's part; returns when all ranks have theirs."""
    engine, split = part.engine, part.split
    target = _target(engine.profile(part.profile).target)
    if job.rank == 0:
        target.check(part, split)
    job.agree(
        {
            "engine": engine.manifest.content_digest,
            "llmc": version(DISTRIBUTION),
            "max_batch": part.max_batch or 0,
            "profile": part.profile,
            "ranks": split.ranks,
        }
    )
    return target.load(job, part)


def _lead(job: Job, part: Part) -> Executor:
    local = _load(job, part)
    atexit.unregister(job.close)  # the executor's owner closes it, when no thread computes any more
    return RanksExecutor(local, job, part.split)


def _serve(job: Job, part: Part) -> None:
    """Compute this rank's part of every step that rank 0 tells."""
    local, split = _load(job, part), part.split
    last = split.pp > 1 and job.rank == split.rank(split.pp - 1, 0)
    late = 0 if split.pp > 1 else local.executor.depth  # rank 0 waits for what the last stage sends
    reader, begun = StepReader(), deque[tuple[Step, Any]]()

    def collect() -> None:
        outputs = local.executor.collect(begun.popleft()[1])
        part.engine.demand_unchanged()
        if last:
            job.send("outputs", *write_outputs(outputs))

    while (frame := job.receive()) is not None and frame.kind != "close":
        header = frame.header
        match frame.kind:
            case "step":
                step = reader.read(header, frame.arrays)
                begun.append((step, local.executor.submit(local.own(step))))
                while len(begun) > late:
                    collect()
            case "release":
                sequence = header["sequence"]
                while any(one.sequence == sequence for step, _ in begun for one in step):
                    collect()
                reader.release(sequence)
                local.executor.release(sequence)
            case other:
                local.messages[other](header)
    local.executor.close()
    job.receive()  # None, when rank 0 has closed its part too
