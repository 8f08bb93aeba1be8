"""The executor of launch plans: steps become input arrays over a paged KV cache; a device computes them.

The device may be a GPU or the interpreter; both run this file: what is tested without a GPU is what runs on one.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np

from .engine_file import EngineFile
from .errors import EngineError, RecipeError
from .executor import Output, Samplers, Step, Work
from .plan import BLOCK_TOKENS, Plan, Program
from .sampling import SamplingParams

Handle = Any
"""Whatever a device needs to find a submitted step again."""
_NUMPY = {"f32": np.float32, "i32": np.int32, "i64": np.int64}


class Device(Protocol):
    """Runs programs of a plan; weights, caches and state are its own."""

    blocks: int

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


@dataclass(slots=True)
class _Ticket:
    """A submitted step: its works, each one's rows of the logits, and its outputs once they are known."""

    handle: Handle
    works: tuple[Work, ...]
    rows: list[range]
    outputs: tuple[Output, ...] | None = None


@dataclass(slots=True)
class _Batch:
    """A step's inputs while they are filled."""

    arrays: dict[str, np.ndarray]
    rows: list[range] = field(default_factory=list)


def idle_inputs(plan: Plan, sizes: Mapping[str, int]) -> dict[str, np.ndarray]:
    """Inputs of a step that does nothing: padding tokens of empty sequences, greedy rows that nobody keeps."""
    tensors = {name: tensor for name, tensor in plan.tensors.items() if tensor.kind == "input"}
    arrays = {name: np.zeros(tensor.dims(sizes), _NUMPY[tensor.dtype]) for name, tensor in tensors.items()}
    for name in ("slots", "lanes", "edits", "bias_ids", "forget", "marks"):
        arrays[name][:] = -1
    arrays["top_p"][:] = 1.0
    return arrays


class PagedExecutor:
    """A loaded plan (`executor.Executor`): blocks of 64 positions, mixed steps, one step ahead of the host.

    It owns the engine file it was given.
    """

    shares = True
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
        if max_batch is not None and max_batch < 1:
            raise RecipeError(
                f"max_batch = {max_batch}", found="out of range", fix=f"a number from 1 to {facts.max_batch}"
            )
        self._engine = engine
        self._plan = Plan.from_json(engine.section(facts.graph), what=f"{engine.path}: {facts.graph}")
        mixed = [program for program in self._plan.programs if not program.decode]
        if not mixed:
            raise EngineError(f"{engine.path}: a program for prompts", found="none", fix="build the engine again")
        self.max_context = min(facts.max_context, self._plan.max_blocks * BLOCK_TOKENS)
        self.vocab = model.vocab_size
        self.sequences = min(facts.max_batch, max_batch or facts.max_batch, mixed[-1].sequences)
        self.max_prefill = mixed[-1].tokens - mixed[-1].sequences
        self.max_rows = mixed[-1].rows - mixed[-1].sequences
        self._device = make_device(engine, profile, self._plan, self.sequences)
        self.blocks = self._device.blocks
        self._samplers = Samplers()
        self._free = list(range(self.sequences))[::-1]
        self._lane: dict[int, int] = {}
        self._biases = int(self._plan.tensors["bias_ids"].shape[1])
        self._unmarked: set[int] = set()
        self._on_host: dict[int, _Ticket] = {}

    def submit(self, step: Step) -> _Ticket:
        """Fill in the inputs and start the step; sequences whose token only the host can choose wait for it."""
        new = {work.sequence for work in step.work if work.sequence not in self._lane}
        for work in step.work:
            if work.sequence in new:
                self._admit(work)
        tokens = [self._tokens(work) for work in step.work]
        decode = all(not work.is_prompt and len(ids) == 1 for work, ids in zip(step.work, tokens, strict=True))
        count = sum(map(len, tokens))
        rows = count if decode else sum(_row_count(work) for work in step.work)
        program = self._plan.program_for(decode=decode, tokens=count, sequences=len(step.work), rows=rows)
        sizes = program.limits if decode else {"tokens": count, "sequences": len(step.work), "rows": rows}
        batch = self._fill(program, sizes, step.work, tokens)
        for index, work in enumerate(step.work):
            if work.sequence in new:
                batch.arrays["forget"][index] = self._lane[work.sequence]
        wanted = {"sampled", "status"} | ({"logits"} if any(map(self._needs_logits, step.work)) else set())
        if any(work.sample is not None and work.sample.logprobs for work in step.work):
            wanted |= {"top_ids", "top_logits", "summary"}
        index = self._plan.programs.index(program)
        ticket = _Ticket(self._device.run(index, sizes, batch.arrays, wanted if rows else ()), step.work, batch.rows)
        for work in step.work:
            self._on_host.pop(work.sequence, None)
            if work.sample is not None and self._hosted(work, work.sample):
                self._on_host[work.sequence] = ticket
        return ticket

    def collect(self, ticket: _Ticket) -> tuple[Output, ...]:
        """Wait for the step's tokens and logits."""
        if ticket.outputs is None:
            read = self._device.read(ticket.handle)
            pairs = zip(ticket.works, ticket.rows, strict=True)
            ticket.outputs = tuple(self._output(work, rows, read) for work, rows in pairs)
        return ticket.outputs

    def release(self, sequence: int) -> None:
        self._samplers.release(sequence)
        self._on_host.pop(sequence, None)
        self._unmarked.discard(sequence)
        if sequence in self._lane:
            self._free.append(self._lane.pop(sequence))

    def close(self) -> None:
        self._device.close()
        self._engine.close()

    def _admit(self, work: Work) -> None:
        if not self._free:
            raise RecipeError(f"{self.sequences + 1} sequences at once", found=f"room for {self.sequences}")
        self._lane[work.sequence] = self._free.pop()
        if work.cached:
            self._unmarked.add(work.sequence)

    def _hosted(self, work: Work, params: SamplingParams) -> bool:
        """True if only the host can choose: the device lacks room for the biases, or never saw all of the prompt."""
        unknown = params.repetition_penalty != 1.0 and work.sequence in self._unmarked
        return unknown or len(params.logit_bias) > self._biases

    def _needs_logits(self, work: Work) -> bool:
        return work.rows != "none" or (work.sample is not None and self._hosted(work, work.sample))

    def _tokens(self, work: Work) -> tuple[int, ...]:
        """The ids as the device takes them: -1 - lane for the token it sampled itself."""
        if work.tokens:
            return work.tokens
        waiting = self._on_host.get(work.sequence)
        if waiting is None:
            return (-1 - self._lane[work.sequence],)
        self.collect(waiting)
        return (self._samplers.token(work.sequence),)

    def _fill(
        self, program: Program, sizes: Mapping[str, int], works: tuple[Work, ...], tokens: list[tuple[int, ...]]
    ) -> _Batch:
        """Every input of the program; padding sequences have length 0, padding tokens slot -1."""
        batch = _Batch(idle_inputs(self._plan, sizes))
        arrays = batch.arrays
        at = row = 0
        for index, (work, ids) in enumerate(zip(works, tokens, strict=True)):
            stop = at + len(ids)
            positions = np.arange(work.start, work.end)
            blocks = np.array(work.blocks, np.int32)
            arrays["token_ids"][at:stop] = ids
            if work.is_prompt:
                arrays["marks"][at:stop] = self._lane[work.sequence]
            arrays["positions"][at:stop] = positions
            arrays["slots"][at:stop] = blocks[positions // BLOCK_TOKENS] * BLOCK_TOKENS + positions % BLOCK_TOKENS
            arrays["lengths"][index] = work.end
            arrays["tables"][index, : len(blocks)] = blocks
            arrays["starts"][index + 1 :] = stop
            count = 1 if program.decode else _row_count(work)
            batch.rows.append(range(row, row + count))
            arrays["rows"][row : row + count] = np.arange(stop - count, stop)
            row += count
            if work.sample is not None:
                self._choose(arrays, row - 1, work, work.sample)
            at = stop
        return batch

    def _choose(self, arrays: Mapping[str, np.ndarray], row: int, work: Work, params: SamplingParams) -> None:
        """How the device samples a row; if only the host can, it samples greedily and nobody looks."""
        arrays["place"][row] = work.end
        if self._hosted(work, params):
            return
        lane = arrays["lanes"][row] = self._lane[work.sequence]
        arrays["temperature"][row] = 0.0 if params.greedy else params.temperature
        arrays["top_k"][row], arrays["top_p"][row], arrays["min_p"][row] = params.top_k, params.top_p, params.min_p
        arrays["seed"][row] = np.uint64(params.seed or 0).astype(np.int64)
        arrays["logprobs"][row] = params.logprobs
        if params.edits_logits:
            arrays["edits"][row] = lane
            for name in ("repetition", "presence", "frequency"):
                arrays[name][row] = getattr(params, f"{name}_penalty")
            for index, (token, bias) in enumerate(params.logit_bias):
                arrays["bias_ids"][row, index], arrays["biases"][row, index] = token, bias

    def _output(self, work: Work, rows: range, read: Mapping[str, np.ndarray]) -> Output:
        logits = read["logits"][rows.start : rows.stop] if "logits" in read and len(rows) else None
        params = work.sample
        if params is None or self._hosted(work, params):
            return self._samplers.output(work, logits)
        self._samplers.output(_without_sample(work), None)
        row = rows[-1]
        wanted = None if work.rows == "none" or logits is None else logits if work.rows == "all" else logits[-1:]
        if read["status"][row]:
            return Output(work.sequence, error=_not_finite(work.end))
        token = int(read["sampled"][row])
        if not params.logprobs:
            return Output(work.sequence, token, logits=wanted)
        logprob, top = _logprobs(read, row, min(params.logprobs, self.vocab))
        return Output(work.sequence, token, logprob, top, wanted)


def _logprobs(read: Mapping[str, np.ndarray], row: int, count: int) -> tuple[float, tuple[tuple[int, float], ...]]:
    """The chosen token's log-probability and the `count` best, best first, of what the device left of a row."""
    highest, weight, own = map(float, read["summary"][row])
    total = highest + math.log(weight)
    ids, logits = read["top_ids"][row, :count].tolist(), read["top_logits"][row, :count].tolist()
    best = sorted(zip(ids, logits, strict=True), key=lambda pair: (-pair[1], pair[0]))
    return own - total, tuple((token, logit - total) for token, logit in best)


def _row_count(work: Work) -> int:
    """Rows of logits that a mixed step computes for a work."""
    if work.rows == "all":
        return len(work.tokens) or 1
    return int(work.sample is not None or work.rows == "last")


def _without_sample(work: Work) -> Work:
    return Work(work.sequence, work.tokens, work.start, work.blocks, None, work.prompt_tokens, cached=work.cached)


def _not_finite(position: int) -> EngineError:
    return EngineError(
        f"choosing the token at position {position}",
        found="logits that are not finite",
        fix="llmc verify ENGINE, to see whether the engine's file or the machine is at fault",
    )
