"""Which tokens run next: continuous batching written once for every executor, with no threads, text or files in it.

Policy. Requests are admitted in order of arrival, and only when blocks for the whole of prompt and max_tokens are free:
so a running request can never run out of cache, none is ever preempted or computed twice, and the oldest one waits the
least. The price is that a request which ends early has held blocks it did not need; a small max_tokens is worth
something. Where blocks can be shared, a request whose prompt begins like an earlier one's reads that one's blocks.
Prompts are computed in chunks, oldest first. Where an executor cannot mix, a chunk and a decode step take turns, so
running requests lose at most every other step to newcomers.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Collection
from dataclasses import dataclass, field, replace
from typing import Literal

from ..errors import RecipeError
from ..sampling.params import SamplingParams
from .blocks import BlockPool
from .executor import Executor, Output, Rows, Step, Ticket, Work

Finish = Literal["stop", "length", "error"]


@dataclass(frozen=True, slots=True)
class Request:
    """Token ids in, tokens out. max_tokens 0 (with all_logits) computes the prompt's logits and no token."""

    prompt: tuple[int, ...]
    max_tokens: int
    params: SamplingParams = field(default_factory=SamplingParams)
    all_logits: bool = False
    ignore_eos: bool = False


@dataclass(frozen=True, slots=True)
class Event:
    """One output of a running request; finish says why it was the last one ("stop": an end-of-sequence token)."""

    output: Output
    finish: Finish | None


@dataclass(slots=True, eq=False)
class _Sequence:
    """A request on its way; positions [0, fed) are submitted."""

    id: int
    request: Request
    blocks: tuple[int, ...] = ()
    cached: int = 0
    fed: int = 0
    asked: int = 0
    received: int = 0
    open_works: int = 0
    last: int = 0
    over: bool = False

    @property
    def in_prompt(self) -> bool:
        return not self.over and self.fed < len(self.request.prompt)

    @property
    def can_decode(self) -> bool:
        return not self.over and self.fed >= len(self.request.prompt) and self.asked < self.request.max_tokens


class Scheduler:
    """Steps an executor for any number of requests; `add`, `finish` and `step` are called by one thread."""

    def __init__(self, executor: Executor, eos_ids: Collection[int] = ()) -> None:
        self._executor = executor
        self._eos = frozenset(eos_ids)
        self._pool = BlockPool(executor.blocks, executor.block_tokens, share=executor.shares)
        self._waiting: deque[_Sequence] = deque()
        self._running: dict[int, _Sequence] = {}
        self._open: deque[tuple[Ticket, list[_Sequence]]] = deque()
        self._next_id = 0
        self._prompt_had_turn = False

    @property
    def idle(self) -> bool:
        """True if there is nothing to step."""
        return not (self._waiting or self._running)

    @property
    def free_blocks(self) -> int:
        """Blocks that belong to no request."""
        return self._pool.available

    @property
    def capacity(self) -> int:
        """Tokens, prompt and output together, that one request can have."""
        return min(self._executor.max_context, self._executor.blocks * self._executor.block_tokens)

    def check(self, request: Request) -> Request:
        """The request with max_tokens cut to what fits; RecipeError if it can never run. Any thread may call it."""
        prompt, vocab = request.prompt, self._executor.vocab
        if not prompt:
            raise RecipeError("an empty prompt", found="no tokens", fix="at least one token")
        if min(prompt) < 0 or max(prompt) >= vocab:
            bad = next(token for token in prompt if not 0 <= token < vocab)
            raise RecipeError(
                f"token id {bad} in the prompt", found=f"a vocabulary of {vocab}", fix=f"ids 0..{vocab - 1}"
            )
        room = self.capacity - len(prompt)
        wanted = min(request.max_tokens, 1)
        if room < wanted:
            raise RecipeError(
                f"a prompt of {len(prompt)} tokens",
                found=f"room for {self.capacity} tokens, prompt and output together",
                fix=f"a prompt of at most {self.capacity - wanted} tokens, or a larger --max-context at build",
            )
        request.params.check_vocab(vocab)
        return replace(request, max_tokens=min(request.max_tokens, room), params=request.params.seeded())

    def add(self, request: Request) -> int:
        """Queues a request and gives its sequence number; RecipeError as in `check`."""
        sequence = _Sequence(self._next_id, self.check(request))
        self._next_id += 1
        self._waiting.append(sequence)
        return sequence.id

    def finish(self, sequence: int) -> None:
        """Ends a sequence of which no more is wanted (stop string, cancelled): no further event; harmless if over."""
        running = self._running.get(sequence)
        if running is None:
            self._waiting = deque(waiting for waiting in self._waiting if waiting.id != sequence)
        else:
            running.over = True
            self._settle(running)

    def step(self) -> list[Event]:
        """Submits the next step, if any, and collects the one that is `depth` steps old; passes exceptions on."""
        self._admit()
        works, sequences = self._plan()
        if works:
            self._open.append((self._executor.submit(Step(tuple(works))), sequences))
        if not self._open or (works and len(self._open) <= self._executor.depth):
            return []
        return self._collect()

    def _admit(self) -> None:
        while self._waiting and len(self._running) < self._executor.sequences:
            sequence = self._waiting[0]
            request = sequence.request
            length = len(request.prompt) + request.max_tokens
            lease = self._pool.take(request.prompt, length, reuse=not request.all_logits)
            if lease is None:
                return
            sequence.blocks, sequence.cached, sequence.fed = lease.blocks, lease.cached, lease.cached
            self._running[sequence.id] = self._waiting.popleft()

    def _plan(self) -> tuple[list[Work], list[_Sequence]]:
        """The next step's works and their sequences, in one order."""
        decoding = [sequence for sequence in self._running.values() if sequence.can_decode]
        prompts = [sequence for sequence in self._running.values() if sequence.in_prompt]
        if not self._executor.mixed:
            self._prompt_had_turn = bool(prompts) and not (decoding and self._prompt_had_turn)
            decoding, prompts = ([], prompts[:1]) if self._prompt_had_turn else (decoding, [])
        works = [self._decode(sequence) for sequence in decoding]
        budget, rows = self._executor.max_prefill, self._executor.max_rows
        for sequence in prompts:
            size = min(budget, rows) if sequence.request.all_logits else budget
            if size == 0:
                break
            works.append(self._chunk(sequence, size))
            decoding.append(sequence)
            budget -= len(works[-1].tokens)
            rows -= len(works[-1].tokens) if sequence.request.all_logits else 0
        return works, decoding

    def _chunk(self, sequence: _Sequence, size: int) -> Work:
        request, start = sequence.request, sequence.fed
        tokens = request.prompt[start : start + size]
        last = start + len(tokens) == len(request.prompt)
        sample = request.params if last and request.max_tokens else None
        return self._work(sequence, tokens, sample, "all" if request.all_logits else "none")

    def _decode(self, sequence: _Sequence) -> Work:
        tokens = (sequence.last,) if sequence.received == sequence.asked else ()
        return self._work(sequence, tokens, sequence.request.params, "none")

    def _work(self, sequence: _Sequence, tokens: tuple[int, ...], sample: SamplingParams | None, rows: Rows) -> Work:
        prompt = sequence.request.prompt
        cached = prompt[: sequence.cached] if sequence.fed == sequence.cached else ()
        work = Work(sequence.id, tokens, sequence.fed, sequence.blocks, sample, len(prompt), rows, cached)
        sequence.fed = work.end
        if work.is_prompt:
            self._pool.remember(prompt[: sequence.fed], sequence.blocks)
        sequence.asked += sample is not None
        sequence.open_works += 1
        return work

    def _collect(self) -> list[Event]:
        ticket, sequences = self._open.popleft()
        outputs = self._executor.collect(ticket)
        events = []
        for sequence, output in zip(sequences, outputs, strict=True):
            sequence.open_works -= 1
            if not sequence.over:
                events.append(self._event(sequence, output))
            self._settle(sequence)
        return events

    def _event(self, sequence: _Sequence, output: Output) -> Event:
        request = sequence.request
        finish: Finish | None = None
        if output.error is not None:
            finish = "error"
        elif output.token is not None:
            sequence.last = output.token
            sequence.received += 1
            if output.token in self._eos and not request.ignore_eos:
                finish = "stop"
            elif sequence.received == request.max_tokens:
                finish = "length"
        elif request.max_tokens == 0 and sequence.fed == len(request.prompt) and sequence.open_works == 0:
            finish = "length"
        sequence.over = finish is not None
        return Event(output, finish)

    def _settle(self, sequence: _Sequence) -> None:
        """Gives back what a sequence holds once it is over and no open step uses its blocks."""
        if not sequence.over or sequence.open_works:
            return
        del self._running[sequence.id]
        self._pool.give(sequence.blocks)
        if sequence.fed > sequence.cached:
            self._executor.release(sequence.id)
