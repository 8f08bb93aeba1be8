"""Checks that the programs of all ranks fit together: ranks that wait for each other would wait for ever."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence

from ..cpu.executor import program_of
from ..cpu.program import RUN, Program, Step
from ..engine_file.file import EngineFile
from ..engine_file.split import Split, label_of
from ..errors import EngineError

Waiting = deque[tuple[int, Step]]
"""Collectives of a rank that are still to come, with their numbers in its program."""


def check_programs(engine: EngineFile, profile: str, split: Split) -> None:
    """Go through the collectives of all ranks as they would.

    Raises:
        EngineError: a program is none of ours; or ranks disagree about what they exchange, or when.
    """
    programs = [program_of(engine, label_of(profile, rank))[0] for rank in range(split.ranks)]
    left = [Waiting((at, step) for at, step in enumerate(one.steps) if step.op != RUN) for one in programs]
    while _together(programs, left, split) or _passed(programs, left):
        pass
    for rank, waiting in enumerate(left):
        if waiting:
            at, step = waiting[0]
            asked = f"expected ranks that exchange the same values in profile {profile!r} of {engine.path}"
            raise EngineError(asked, found=f"rank {rank} alone at step {at} ({step.op})", fix="build the engine again")


def _together(programs: Sequence[Program], left: Sequence[Waiting], split: Split) -> bool:
    """Pass the collectives that all ranks of a stage have reached; False if there are none."""
    moved = False
    for stage in range(split.pp):
        ranks = [split.rank(stage, shard) for shard in range(split.shards)]
        while all(left[rank] for rank in ranks):
            next_ = [(rank, left[rank][0][1]) for rank in ranks]
            if next_[0][1].op in ("Send", "Recv") or len({_exchanged(programs[rank], one) for rank, one in next_}) > 1:
                break
            for rank in ranks:
                left[rank].popleft()
            moved = True
    return moved


def _passed(programs: Sequence[Program], left: Sequence[Waiting]) -> bool:
    """Pass the messages whose sender and receiver have come to them; False if there are none."""
    moved = False
    for rank, waiting in enumerate(left):
        while waiting and (sent := waiting[0][1]).op == "Send" and left[sent.peer]:
            taken = left[sent.peer][0][1]
            shapes = (
                programs[rank].values[sent.inputs[0]],
                programs[sent.peer].values.get(next(iter(taken.outputs), "")),
            )
            if (taken.op, taken.peer) != ("Recv", rank) or shapes[0] != shapes[1]:
                break
            waiting.popleft()
            left[sent.peer].popleft()
            moved = True
    return moved


def _exchanged(program: Program, step: Step) -> object:
    """What the ranks of a group must agree on: the operator and the whole value."""
    name = (step.outputs if step.op == "AllGather" else step.inputs)[0]
    return step.op, step.axis, step.sizes, program.values[name]
