"""The executor of launch plans: steps become input arrays over a paged KV cache; a device computes them.

The device may be a GPU or the interpreter; both run this file: what is tested without a GPU is what runs on one.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from ..engine_file.file import EngineFile
from ..errors import EngineError, RecipeError
from ..sampling.draw import Sampled, not_finite
from ..sampling.params import SamplingParams
from ..scheduling.executor import CacheKind, Output, Samplers, Work, sequence_count
from .inputs import Part, Slots, check_inputs, idle_inputs
from .plan import BLOCK_TOKENS, Plan

Handle = Any
"""Whatever a device needs to find a submitted step again."""


class Device(Protocol):
    """Runs programs of a plan; weights, caches and state are its own.

    blocks: of each kind of cache, by the name of its size. notes: what to tell of its loading.
    """

    blocks: Mapping[str, int]
    notes: tuple[str, ...]

    def run(
        self, program: int, sizes: Mapping[str, int], inputs: Mapping[str, np.ndarray], wanted: Collection[str]
    ) -> Handle:
        """Starts a program on inputs by name; the buffers named in `wanted` are kept for `read`."""
        ...

    def read(self, handle: Handle) -> Mapping[str, np.ndarray]:
        """Waits, and gives the wanted buffers; called once per handle, in order."""
        ...

    def close(self) -> None:
        """Frees everything."""
        ...


MakeDevice = Callable[[EngineFile, str, Plan, int], Device]
"""Engine, profile name, plan and sequences at once to a loaded device."""


@dataclass(slots=True, eq=False)
class _Sequence:
    """A sequence under way. unmarked: part of its prompt came from the cache, so the device does not know its tokens.

    hosted: only the host can choose its tokens; waiting: the step that gives the next one then.
    """

    slot: int
    unmarked: bool
    params: SamplingParams | None = None
    hosted: bool = False
    waiting: _Ticket | None = None


@dataclass(slots=True)
class _Ticket:
    """A submitted step: its works, whether the host chooses the token of each, each one's rows of the logits, and its
    outputs once they are known."""

    handle: Handle
    works: tuple[Work, ...]
    hosted: list[bool]
    rows: list[range]
    outputs: tuple[Output, ...] | None = None


class PagedExecutor:
    """A loaded plan (`executor.Executor`): blocks of 64 positions, mixed steps, one step ahead of the host.

    It owns the engine file it was given.
    """

    mixed = True
    depth = 1
    block_tokens = BLOCK_TOKENS

    def __init__(self, engine: EngineFile, profile: str, make_device: MakeDevice, *, max_batch: int | None) -> None:
        """Read the plan and load it.

        Raises:
            EngineError: the plan is not one of ours.
            RecipeError: `max_batch` is no count.
            ResourceError: the device has too little memory.
        """
        facts, model = engine.manifest.profiles[profile], engine.manifest.model
        at_once = sequence_count(max_batch, facts.max_batch)
        self._engine = engine
        self._plan = Plan.from_json(engine.section(facts.graph), what=f"{engine.path}: {facts.graph}")
        mixed = [program for program in self._plan.programs if not program.decode]
        if not mixed:
            raise EngineError(f"{engine.path}: a program for prompts", found="none", fix="build the engine again")
        self.max_context = min(facts.max_context, self._plan.max_blocks * BLOCK_TOKENS)
        self.vocab = model.vocab_size
        self.sequences = min(at_once, mixed[-1].sequences)
        self.max_prefill = mixed[-1].tokens - mixed[-1].sequences
        self.max_rows = mixed[-1].rows - mixed[-1].sequences
        check_inputs(self._plan, f"{engine.path}: {facts.graph}")
        self._device = make_device(engine, profile, self._plan, self.sequences)
        self.caches = tuple(
            CacheKind(self._device.blocks[cache.size], None if cache.window is None else cache.blocks * BLOCK_TOKENS)
            for cache in self._plan.caches
        )
        self.shares = len(self.caches) == 1 and self.caches[0].positions is None
        self.notes = self._device.notes
        self._samplers = Samplers()
        self._slots = Slots(self._plan, self.sequences)
        self._sequences: dict[int, _Sequence] = {}

    def submit(self, works: tuple[Work, ...]) -> _Ticket:
        """Fill in the inputs and start the step; sequences whose token only the host can choose wait for it."""
        parts = [self._part(work) for work in works]
        sequences = [self._sequences[work.sequence] for work in works]
        count = sum(len(part.ids) for part in parts)
        decode = count == len(parts) and not any(part.prompt for part in parts)
        rows = sum(part.rows for part in parts)
        program = self._plan.program_for(decode=decode, tokens=count, sequences=len(parts), rows=rows)
        sizes = program.limits if decode else {"tokens": count, "sequences": len(parts), "rows": rows}
        inputs = idle_inputs(self._plan, sizes)
        rows_of = self._slots.fill(inputs, parts)
        index = self._plan.programs.index(program)
        handle = self._device.run(index, sizes, inputs, self._wanted(works, sequences) if rows else ())
        ticket = _Ticket(handle, works, [sequence.hosted for sequence in sequences], rows_of)
        for sequence, work in zip(sequences, works, strict=True):
            sequence.waiting = ticket if sequence.hosted and work.sample is not None else None
        return ticket

    def collect(self, ticket: _Ticket) -> tuple[Output, ...]:
        """Wait for the step's tokens and logits."""
        if ticket.outputs is None:
            read = self._device.read(ticket.handle)
            tokens, failed = (read[name].tolist() if name in read else [] for name in ("sampled", "status"))
            outputs = []
            for work, hosted, rows in zip(ticket.works, ticket.hosted, ticket.rows, strict=True):
                if work.sample is None or hosted:
                    outputs.append(self._samplers.output(work, _logits(read, rows)))
                elif failed[rows[-1]]:
                    outputs.append(Output(error=not_finite(work.end)))
                else:
                    sampled = _sampled(read, rows[-1], tokens[rows[-1]], min(work.sample.logprobs, self.vocab))
                    outputs.append(Output(sampled, work.wanted(_logits(read, rows))))
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

    def _part(self, work: Work) -> Part:
        """A work as the device takes it: the id of a token that it sampled itself is -1 - slot."""
        sequence = self._sequences.get(work.sequence)
        new = sequence is None
        if sequence is None:
            slot = self._slots.take(work.blocks)
            if slot is None:
                raise RecipeError(f"{self.sequences + 1} sequences at once", found=f"room for {self.sequences}")
            sequence = self._sequences[work.sequence] = _Sequence(slot, unmarked=bool(work.cached))
        if work.sample is not None and sequence.params is None:
            self._choose_by(sequence, work.sample)
        ids = work.tokens or (-1 - sequence.slot,)
        if not work.tokens and sequence.waiting is not None:
            self.collect(sequence.waiting)
            ids = (self._samplers.token(work.sequence),)
        sampled = work.sample is not None and not sequence.hosted
        last = work.sample is not None or work.rows == "last" or not work.is_prompt  # decode programs compute them all
        rows = len(ids) if work.rows == "all" else int(last)
        return Part(sequence.slot, ids, work.start, rows, sampled, work.is_prompt, new)

    def _choose_by(self, sequence: _Sequence, params: SamplingParams) -> None:
        """The host chooses where the device lacks room for biases, or knowledge of the prompt's tokens."""
        unknown = params.repetition_penalty != 1.0 and sequence.unmarked
        sequence.params, sequence.hosted = params, unknown or len(params.logit_bias) > self._slots.max_biases
        if not sequence.hosted:
            self._slots.choose_by(sequence.slot, params)

    def _wanted(self, works: tuple[Work, ...], sequences: list[_Sequence]) -> set[str]:
        """The buffers to read back."""
        wanted = {"sampled", "status"}
        for work, sequence in zip(works, sequences, strict=True):
            if work.rows != "none" or (sequence.hosted and work.sample is not None):
                wanted.add("logits")
            if work.sample is not None and work.sample.logprobs and not sequence.hosted:
                wanted |= {"top_ids", "top_logits", "summary"}
        return wanted


def _logits(read: Mapping[str, np.ndarray], rows: range) -> np.ndarray | None:
    return read["logits"][rows.start : rows.stop] if "logits" in read and len(rows) else None


def _sampled(read: Mapping[str, np.ndarray], row: int, token: int, count: int) -> Sampled:
    """A token; count > 0: with its log-probability and the `count` best, of what the device left of its row."""
    if not count:
        return Sampled(token)
    highest, weight, own = map(float, read["summary"][row])
    total = highest + math.log(weight)
    ids, logits = read["top_ids"][row, :count].tolist(), read["top_logits"][row, :count].tolist()
    best = sorted(zip(ids, logits, strict=True), key=lambda pair: (-pair[1], pair[0]))
    return Sampled(token, own - total, tuple((other, logit - total) for other, logit in best))
