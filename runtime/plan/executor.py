"""The executor of launch plans: turns steps into input arrays over a paged KV cache and runs them on a device.

The device is a GPU or the interpreter. Both use this file, so tests without a GPU cover the code that runs on one.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from ..engine_file.file import EngineFile
from ..engine_file.rope import table_of
from ..errors import EngineError, LlmcError, RecipeError
from ..sampling.draw import Sampled, not_finite
from ..sampling.params import SamplingParams
from ..scheduling.blocks import SharedPool
from ..scheduling.executor import CacheKind, Output, Pool, Samplers, ScheduledSequence, sequence_count
from ..scheduling.kept import KeptPool
from .between import RankOf
from .inputs import PlacedSequence, Slots, check_inputs, idle_inputs
from .plan import BLOCK_TOKENS, Plan

Handle = Any
"""The device's identifier of a submitted step."""


class Device(Protocol):
    """Runs programs of a plan; owns weights, caches and state."""

    blocks: Mapping[str, int]
    """Number of blocks of each cache kind, by the name of its size."""
    notes: tuple[str, ...]
    """Messages for the user about loading."""

    def run(
        self, program: int, sizes: Mapping[str, int], inputs: Mapping[str, np.ndarray], wanted: Collection[str]
    ) -> Handle:
        """Start a program on inputs by name; keep the buffers named in `wanted` for `read`."""
        ...

    def read(self, handle: Handle) -> Mapping[str, np.ndarray]:
        """Wait for the step and return its wanted buffers. The caller reads each handle once, in order."""
        ...

    def close(self) -> None:
        """Free everything."""
        ...


MakeDevice = Callable[[EngineFile, str, Plan, int], Device]
"""Loads a device from the engine file, profile name, plan and number of sequences at once."""


@dataclass(slots=True, eq=False)
class _Sequence:
    """A running sequence."""

    slot: int
    prompt_unknown: bool
    """True if part of its prompt came from the cache, so that the device never received those tokens."""
    generated_unknown: bool
    """True if it started again, so that the device did not choose all of its tokens."""
    params: SamplingParams | None = None
    sampled_on_host: bool = False
    """True if the device cannot sample its tokens."""
    waiting: _Ticket | None = None
    """The step that gives the next token, if the token is sampled on the host."""


@dataclass(slots=True)
class _Ticket:
    """A submitted step. The lists have one entry per scheduled sequence."""

    handle: Handle
    step: tuple[ScheduledSequence, ...]
    sampled_on_host: list[bool]
    rows: list[range]
    """Rows of the step's logits."""
    outputs: tuple[Output, ...] | None = None
    """None until the step has been read."""


class PagedExecutor:
    """A loaded plan (`executor.Executor`): blocks of 64 positions, mixed steps, one step ahead of the host.

    It owns the engine file. The executor of one rank gets the steps of all: it samples and has logits in the last stage
    only, and needs every token of a step if there are several stages.
    """

    mixed = True
    depth = 1
    block_tokens = BLOCK_TOKENS

    def __init__(self, engine: EngineFile, profile: str, make_device: MakeDevice, *, max_batch: int | None) -> None:
        """Read the plan and load it.

        Raises:
            EngineError: the plan is invalid.
            RecipeError: `max_batch` is not a positive whole number.
            ResourceError: the device has too little memory.
        """
        facts, model = engine.profile(profile), engine.manifest.model
        at_once = sequence_count(max_batch, facts.max_batch)
        self._engine = engine
        self._plan = Plan.from_json(engine.section(facts.graph), what=f"{facts.graph} of {engine.path}")
        if self._plan.rank != RankOf.of(profile):
            found = f"that of {self._plan.rank}"
            raise EngineError(
                f"expected the plan of {profile} in {engine.path}", found=found, fix="build the engine again"
            )
        mixed = [program for program in self._plan.programs if not program.decode]
        if not mixed:
            raise EngineError(
                f"expected a program for prompts in {engine.path}", found="none", fix="build the engine again"
            )
        self.max_context = min(facts.max_context, self._plan.max_blocks * BLOCK_TOKENS)
        self.vocab = model.vocab_size
        self.sequences = min(at_once, mixed[-1].sequences)
        self.max_prefill = mixed[-1].tokens - mixed[-1].sequences
        self.max_rows = mixed[-1].rows - mixed[-1].sequences
        check_inputs(self._plan, f"{facts.graph} of {engine.path}")
        self._ropes = model.ropes or ()
        if [len(rope.short) for rope in self._ropes] != list(self._plan.rotary or ()):
            raise EngineError(
                f"expected a plan with the rotary tables of the model in {engine.path}",
                found=f"{list(self._plan.rotary or ())} pairs",
                fix="build the engine again",
            )
        self._device = make_device(engine, profile, self._plan, self.sequences)
        self.caches = tuple(
            CacheKind(self._device.blocks[cache.size])
            if cache.window is None
            else CacheKind(self._device.blocks[cache.size], cache.blocks * BLOCK_TOKENS, cache.window)
            for cache in self._plan.caches
        )
        self.notes = self._device.notes
        self._samplers = Samplers()
        self._slots = Slots(self._plan, self.sequences, self._ropes)
        self._sequences: dict[int, _Sequence] = {}

    def table_of(self, length: int) -> int:
        return table_of(self._ropes, length)

    def pool(self) -> Pool:
        return pool_of(self.caches)

    def submit(self, step: tuple[ScheduledSequence, ...]) -> _Ticket:
        """Fill in the inputs and start the step; first collect an earlier step whose token the host must sample."""
        placed = [self._place(scheduled) for scheduled in step]
        sequences = [self._sequences[scheduled.sequence] for scheduled in step]
        count = sum(len(one.ids) for one in placed)
        decode = count == len(placed) and not any(one.prompt for one in placed)
        rows = sum(one.rows for one in placed)
        program = self._plan.program_for(decode=decode, tokens=count, sequences=len(placed), rows=rows)
        sizes = program.limits if decode else {"tokens": count, "sequences": len(placed), "rows": rows}
        inputs = idle_inputs(self._plan, sizes)
        rows_of = self._slots.fill(inputs, placed)
        index = self._plan.programs.index(program)
        wanted = self._wanted(step, sequences) if rows and self._plan.rank.is_last else ()
        handle = self._device.run(index, sizes, inputs, wanted)
        ticket = _Ticket(handle, step, [sequence.sampled_on_host for sequence in sequences], rows_of)
        for sequence, scheduled in zip(sequences, step, strict=True):
            sequence.waiting = ticket if sequence.sampled_on_host and scheduled.sample is not None else None
        return ticket

    def collect(self, ticket: _Ticket) -> tuple[Output, ...]:
        """Wait for the step's tokens and logits."""
        if ticket.outputs is None:
            read = self._device.read(ticket.handle)
            if not self._plan.rank.is_last:
                ticket.outputs = (Output(),) * len(ticket.step)
                return ticket.outputs
            tokens, failed = (read[name].tolist() if name in read else [] for name in ("sampled", "status"))
            outputs = []
            for scheduled, sampled_on_host, rows in zip(ticket.step, ticket.sampled_on_host, ticket.rows, strict=True):
                if scheduled.sample is None or sampled_on_host:
                    outputs.append(self._samplers.output(scheduled, _logits(read, rows)))
                elif failed[rows[-1]]:
                    outputs.append(Output(error=not_finite(scheduled.end)))
                else:
                    sampled = _sampled(read, rows[-1], tokens[rows[-1]], min(scheduled.sample.logprobs, self.vocab))
                    outputs.append(Output(sampled, scheduled.select_rows(_logits(read, rows))))
            ticket.outputs = tuple(outputs)
        return ticket.outputs

    def release(self, sequence: int) -> None:
        self._samplers.release(sequence)
        known = self._sequences.pop(sequence, None)
        if known is not None:
            self._slots.give(known.slot)

    def close(self) -> None:
        self._device.close()
        self._engine.close()

    def _place(self, scheduled: ScheduledSequence) -> PlacedSequence:
        """Place a sequence in its slot. A token sampled on the device has the id -1 - slot."""
        sequence = self._sequences.get(scheduled.sequence)
        new = sequence is None
        if sequence is None:
            slot = self._slots.take(scheduled.blocks)
            if slot is None:
                found = f"room for {self.sequences}"
                raise RecipeError(f"cannot run {self.sequences + 1} sequences at once", found=found)
            sequence = _Sequence(slot, bool(scheduled.cached), bool(scheduled.generated))
            self._sequences[scheduled.sequence] = sequence
        if not scheduled.tokens and self._plan.rank.pp > 1:
            raise LlmcError(
                f"expected the token of sequence {scheduled.sequence}, which another rank has sampled", found="none"
            )
        if self._plan.rank.is_last and scheduled.sample is not None and sequence.params is None:
            self._set_sampling(sequence, scheduled.sample)
        ids = scheduled.tokens or (-1 - sequence.slot,)
        if not scheduled.tokens and sequence.waiting is not None:
            self.collect(sequence.waiting)
            ids = (self._samplers.token(scheduled.sequence),)
        sampled = scheduled.sample is not None and not sequence.sampled_on_host
        last = (
            scheduled.sample is not None or scheduled.rows == "last" or not scheduled.is_prompt
        )  # decode programs compute every row
        rows = len(ids) if scheduled.rows == "all" else int(last)
        prompt, table = scheduled.is_prompt, scheduled.table
        return PlacedSequence(sequence.slot, ids, scheduled.start, rows, sampled, prompt, new, table)

    def _set_sampling(self, sequence: _Sequence, params: SamplingParams) -> None:
        """Sample on the host if the device lacks room for biases, or lacks tokens that a penalty needs."""
        repetition = params.repetition_penalty != 1.0
        unknown = repetition and sequence.prompt_unknown
        if sequence.generated_unknown:
            unknown = repetition or params.presence_penalty != 0.0 or params.frequency_penalty != 0.0
        sequence.params, sequence.sampled_on_host = params, unknown or len(params.logit_bias) > self._slots.max_biases
        if not sequence.sampled_on_host:
            self._slots.set_sampling(sequence.slot, params)

    def _wanted(self, step: tuple[ScheduledSequence, ...], sequences: list[_Sequence]) -> set[str]:
        """The buffers to read back."""
        wanted = {"sampled", "status"}
        for scheduled, sequence in zip(step, sequences, strict=True):
            if scheduled.rows != "none" or (sequence.sampled_on_host and scheduled.sample is not None):
                wanted.add("logits")
            if scheduled.sample is not None and scheduled.sample.logprobs and not sequence.sampled_on_host:
                wanted |= {"top_ids", "top_logits", "summary"}
        return wanted


def pool_of(caches: tuple[CacheKind, ...]) -> Pool:
    """Blocks of a window are rings, whose contents depend on what came later: they cannot be shared."""
    if len(caches) == 1 and caches[0].positions is None:
        return SharedPool(caches[0], BLOCK_TOKENS)
    return KeptPool(caches, BLOCK_TOKENS)


def _logits(read: Mapping[str, np.ndarray], rows: range) -> np.ndarray | None:
    return read["logits"][rows.start : rows.stop] if "logits" in read and len(rows) else None


def _sampled(read: Mapping[str, np.ndarray], row: int, token: int, count: int) -> Sampled:
    """A sampled token; if count > 0, with its log-probability and the `count` best tokens of its row."""
    if not count:
        return Sampled(token)
    highest, weight, own = map(float, read["summary"][row])
    total = highest + math.log(weight)
    ids, logits = read["top_ids"][row, :count].tolist(), read["top_logits"][row, :count].tolist()
    best = sorted(zip(ids, logits, strict=True), key=lambda pair: (-pair[1], pair[0]))
    return Sampled(token, own - total, tuple((other, logit - total) for other, logit in best))
