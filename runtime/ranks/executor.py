"""Rank 0's executor of a profile that is split over ranks: tells all ranks each step, and computes its own part.

With pipeline stages, results come from the last one: a step is open while the next one is computed, and a decode step
is cut into groups of sequences, so that every stage has one to work on. A token that the last stage has chosen is
waited for here before the step that needs it is told.
"""

from __future__ import annotations

from collections import deque
from contextlib import suppress
from dataclasses import dataclass, field, replace
from itertools import pairwise
from typing import Any

from ..engine_file.split import Split
from ..errors import LlmcError
from ..parallel.job import Job
from ..scheduling.executor import Output, ScheduledSequence
from .local import Local
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
    """An `executor.Executor` over the ranks of a job; `local` is this rank's part."""

    def __init__(self, local: Local, job: Job, split: Split) -> None:
        self._part, self._local, self._job, self._split = local, local.executor, job, split
        self.pool, self.caches, own = local.pool, local.caches, local.executor
        self.notes, self.block_tokens, self.sequences = own.notes, own.block_tokens, own.sequences
        self.mixed, self.vocab, self.max_context, self.max_rows = own.mixed, own.vocab, own.max_context, own.max_rows
        self._staged = split.pp > 1
        self.depth = split.pp - 1 if self._staged else own.depth
        self.max_prefill = min(own.max_prefill, PIPELINED_PREFILL) if self._staged else own.max_prefill
        self._writer = StepWriter(others_sample=self._staged or local.samples_everywhere)
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
                ticket.local = self._local.submit(self._part.own(step))
                return ticket
            for part in self._parts(step):
                known = tuple(map(self._resolved, part))
                group = _Group(known)
                self._job.broadcast("step", *self._writer.write(known))
                self._open.append(group)
                self._latest |= {one.sequence: (group, at) for at, one in enumerate(known) if one.sample is not None}
                self._local.collect(self._local.submit(self._part.own(known)))
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
        """End the job. Ranks free what they have at once, as some of it waits for the same on other ranks."""
        try:
            with suppress(LlmcError):  # the job has ended already
                self._job.broadcast("close")
            self._local.close()
        finally:
            self._job.close()

    def _parts(self, step: Step) -> list[Step]:
        """The groups of a step: as many as there are stages, if it has that many sequences."""
        count = min(self._split.pp, len(step))
        if count > 1:
            step = self._part.arrange(step)
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
