"""Rank 0's executor of a profile that is split over ranks: tells all ranks each step, and computes its own part.

With pipeline stages, results come from the last one: a step is open while the next one is computed, and a decode step
is cut into groups of sequences, so that every stage has one to work on. A token that the last stage has chosen is
waited for here before the step that needs it is told.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Collection
from dataclasses import dataclass, field, replace
from itertools import pairwise
from typing import Any

from ..cpu.slots import SlotCaches
from ..engine_file.split import Split
from ..parallel.job import Job
from ..scheduling.executor import Executor, Output, Pool, ScheduledSequence
from .messages import Step, StepWriter, read_outputs

PIPELINED_PREFILL = 128
"""Most prompt tokens of a step with pipeline stages: smaller steps leave the stages idle for less time at both ends of
a prompt. Of four prompts of 512 tokens two stages compute 16 steps, and wait for 1 of 17."""


@dataclass(eq=False)
class _Group:
    """Sequences of a step that go through the stages together."""

    step: Step
    outputs: tuple[Output, ...] | None = None


@dataclass(eq=False)
class _Ticket:
    step: Step
    groups: list[_Group] = field(default_factory=list)
    local: Any = None
    """The local executor's ticket, where this rank has the results."""


class RanksExecutor:
    """An `executor.Executor` over the ranks of a job; `local` is this rank's part of the profile."""

    def __init__(
        self, local: Executor, job: Job, split: Split, pool: Callable[[], Pool], arrange: Callable[[Step], Step]
    ) -> None:
        """`pool` makes the account of blocks of all ranks; `arrange` orders a step so that it can be cut anywhere."""
        self._local, self._job, self._split, self.pool, self._arrange = local, job, split, pool, arrange
        self.notes = local.notes
        self.block_tokens, self.caches, self.sequences = local.block_tokens, local.caches, local.sequences
        self.mixed, self.vocab, self.max_context = local.mixed, local.vocab, local.max_context
        self.max_rows = local.max_rows
        self._staged = split.pp > 1
        self.depth = split.pp - 1 if self._staged else local.depth
        self.max_prefill = min(local.max_prefill, PIPELINED_PREFILL) if self._staged else local.max_prefill
        self._writer = StepWriter(others_sample=self._staged)
        self._open: deque[_Group] = deque()
        """Groups without results, in the order in which they were told."""
        self._latest: dict[int, tuple[_Group, int]] = {}
        """The group that gives the next token of a sequence, and its place there."""

    def table_of(self, length: int) -> int:
        return self._local.table_of(length)

    def submit(self, step: Step) -> _Ticket:
        """Tell the step to all ranks and compute this rank's part.

        Raises:
            LlmcError: a rank failed, died or hangs; this is the end of the job.
        """
        ticket = _Ticket(step)
        try:
            if not self._staged:
                self._job.broadcast("step", *self._writer.write(step))
                ticket.local = self._local.submit(step)
                return ticket
            for part in self._parts(step):
                known = tuple(map(self._resolved, part))
                group = _Group(known)
                self._job.broadcast("step", *self._writer.write(known))
                self._open.append(group)
                self._latest |= {one.sequence: (group, at) for at, one in enumerate(known) if one.sample is not None}
                self._local.collect(self._local.submit(known))
                ticket.groups.append(group)
        except BaseException as problem:
            raise ending(self._job, problem) from None
        return ticket

    def collect(self, ticket: _Ticket) -> tuple[Output, ...]:
        try:
            if not self._staged:
                return self._local.collect(ticket.local)
            while any(group.outputs is None for group in ticket.groups):
                self._take()
        except BaseException as problem:
            raise ending(self._job, problem) from None
        found = {
            one.sequence: output
            for group in ticket.groups
            for one, output in zip(group.step, group.outputs or (), strict=True)
        }
        return tuple(found[one.sequence] for one in ticket.step)

    def release(self, sequence: int) -> None:
        self._latest.pop(sequence, None)
        self._writer.release(sequence)
        self._job.broadcast("release", {"sequence": sequence})
        self._local.release(sequence)

    def close(self) -> None:
        self._job.close()
        self._local.close()

    def _parts(self, step: Step) -> list[Step]:
        """The groups of a step: as many as there are stages, if it has that many sequences."""
        count = min(self._split.pp, len(step))
        if count > 1:
            step = self._arrange(step)
        ends = [len(step) * index // count for index in range(count + 1)]
        return [step[start:stop] for start, stop in pairwise(ends)]

    def _resolved(self, one: ScheduledSequence) -> ScheduledSequence:
        """The sequence with the token that was chosen last, which is not known before its results are here."""
        if one.tokens:
            return one
        group, at = self._latest[one.sequence]
        while group.outputs is None:
            self._take()
        sampled = group.outputs[at].sampled
        return replace(one, tokens=(0 if sampled is None else sampled.token,))  # after an error any token will do

    def _take(self) -> None:
        """Wait for the results of the group that was told first."""
        frame = self._job.receive()
        assert frame is not None, "rank 0 ends the job itself"
        self._open.popleft().outputs = read_outputs(frame.header, frame.arrays)


def ending(job: Job, problem: BaseException) -> BaseException:
    """End the job for all ranks; returns what to raise here: what has ended it, or Ctrl-C as it came."""
    error = job.fail(problem)
    return error if isinstance(problem, Exception) else problem


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
