"""Continuous batching: chooses the tokens of the next step, for every executor, without threads, text or files.

Policy. Requests are admitted in order of arrival, and only when blocks for the whole of prompt and max_tokens are free:
so a running request can never run out of cache, none is ever preempted or computed twice, and the oldest one waits the
least. The price is that a request which ends early has held blocks it did not need, so set max_tokens tightly. Tokens
that an earlier request has left in its blocks, prompt and answer, are not computed again: so the next turn of a
conversation computes what is new. Prompts are computed in chunks, oldest first. If an executor cannot mix, prompt
chunks and decode steps alternate, so running requests lose at most every other step to newcomers.

A sequence that becomes longer than its rotary tables are for (`engine_file/rope.py`) gives its blocks back and starts
again, before all that wait: its tokens are computed as those of a prompt, once, with the tables of its last step.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Collection
from itertools import count

from ..errors import LlmcError, RecipeError, ResourceError, shown
from .executor import Executor, Output, ScheduledSequence, Ticket
from .request import FinishReason, Request


class Scheduler:
    """Steps an executor for any number of requests. One thread calls its methods; `check` may be called from any."""

    def __init__(
        self, executor: Executor, eos_ids: Collection[int] = (), demand_unchanged: Callable[[], None] = lambda: None
    ) -> None:
        self._executor = executor
        self._demand_unchanged = demand_unchanged
        self._eos = frozenset(eos_ids)
        self._pool = executor.pool()
        self._has_tables = executor.table_of(executor.max_context) > 0
        """False for most models: then no step asks a request whether it needs other rotary tables."""
        self._numbers = count()
        self._waiting: deque[Request] = deque()
        self._running: dict[int, Request] = {}
        self._open: deque[tuple[Ticket, tuple[ScheduledSequence, ...]]] = deque()
        self._prompt_had_turn = False

    @property
    def idle(self) -> bool:
        """True if there is nothing to step."""
        return not (self._waiting or self._running)

    @property
    def free_blocks(self) -> tuple[int, ...]:
        """Blocks that no request uses, for each kind of cache."""
        return self._pool.free

    @property
    def capacity(self) -> int:
        """Tokens, prompt and output together, that one request can have."""
        most, size = self._executor.max_context, self._executor.block_tokens
        rooms = [(kind, kind.blocks * size) for kind in self._executor.caches]
        return min([most, *(room for kind, room in rooms if room < kind.kept(most))])

    def check(self, request: Request) -> None:
        """Reduces max_tokens to the room in the context and draws a seed; callable from any thread.

        Raises:
            RecipeError: the request can never run.
        """
        prompt, vocab = request.prompt, self._executor.vocab
        if not prompt:
            raise RecipeError("expected a prompt of at least one token", found="no tokens")
        if min(prompt) < 0 or max(prompt) >= vocab:
            bad = next(token for token in prompt if not 0 <= token < vocab)
            raise RecipeError(f"expected token ids from 0 to {vocab - 1} in the prompt", found=f"token id {shown(bad)}")
        room = self.capacity - len(prompt)
        wanted = min(request.max_tokens, 1)
        if room < wanted:
            raise RecipeError(
                f"cannot run a prompt of {len(prompt)} tokens",
                found=f"room for {self.capacity} tokens, prompt and output together",
                fix=f"a prompt of at most {self.capacity - wanted} tokens, or a larger --max-context at build",
            )
        request.params.check_vocab(vocab)
        request.max_tokens, request.params = min(request.max_tokens, room), request.params.seeded()

    def queue(self, request: Request) -> None:
        """Queues a checked request and numbers it."""
        self._number(request)
        self._waiting.append(request)

    def add(self, request: Request) -> Request:
        """Checks a request and queues it."""
        self.check(request)
        self.queue(request)
        return request

    def cancel(self, request: Request | None = None) -> None:
        """Ends a request (None: all) early; does nothing if it is over."""
        for one in self._under_way() if request is None else [request]:
            if one.finish is None:
                one.end("cancelled")
            if one.sequence in self._running:
                self._settle(one)

    def fail(self, error: BaseException) -> None:
        """Ends all requests after an exception of `step`, which must not be called again."""
        for request in self._under_way():
            if request.finish is None:
                request.end("error", error)
        self._running.clear()
        self._waiting.clear()

    def step(self) -> None:
        """Submits the next step, if any, and collects the one `depth` steps before it; raises the executor's errors."""
        self._admit()
        step = self._plan()
        if step:
            self._open.append((self._executor.submit(step), step))
        if self._open and not (step and len(self._open) <= self._executor.depth):
            self._collect()

    def _number(self, request: Request) -> None:
        request.sequence = next(self._numbers)
        request.start(self._executor.table_of)

    def _under_way(self) -> list[Request]:
        return [*self._running.values(), *self._waiting]

    def _admit(self) -> None:
        while self._waiting and len(self._running) < self._executor.sequences:
            request = self._waiting[0]
            if request.finish is None and not self._begin(request):
                return
            self._waiting.popleft()

    def _begin(self, request: Request) -> bool:
        """Gives a request its blocks; False while there are too few. One that can never have them ends."""
        length = len(request.prompt) + request.max_tokens
        try:
            lease = self._pool.take(request.keys, length, reuse=not (request.all_logits or request.tokens))
        except ResourceError as error:
            request.end("error", error)
            return True
        if lease is None:
            return False
        request.lease, request.computed = lease, lease.cached
        self._running[request.sequence] = request
        return True

    def _plan(self) -> tuple[ScheduledSequence, ...]:
        """The next step."""
        decoding = [request for request in self._running.values() if request.can_decode]
        if self._has_tables:
            outgrown = [request for request in decoding if self._outgrows(request)]
            decoding = [request for request in decoding if request not in outgrown]
            for request in outgrown:
                if not request.open_steps:
                    self._give_back(request)
                    self._number(request)
                    self._waiting.appendleft(request)
        prompts = [request for request in self._running.values() if request.in_prompt]
        if not self._executor.mixed:
            self._prompt_had_turn = bool(prompts) and not (decoding and self._prompt_had_turn)
            decoding, prompts = ([], prompts[:1]) if self._prompt_had_turn else (decoding, [])
        sizes = dict.fromkeys(decoding, 1)
        budget, rows = self._executor.max_prefill, self._executor.max_rows
        for request in prompts:
            left = request.part_left
            size = min(budget, left, rows if request.all_logits else budget)
            if size == 0:
                break
            if 2 < size == left - 1:
                size -= 1  # no prompt ends with a step of one token, whose sums differ from those of several
            sizes[request] = size
            budget -= size
            rows -= size if request.all_logits else 0
        return tuple([self._schedule(request, size) for request, size in sizes.items()])

    def _outgrows(self, request: Request) -> bool:
        """Whether the next token needs other rotary tables."""
        return self._executor.table_of(request.computed + 1) > request.table

    def _schedule(self, request: Request, size: int) -> ScheduledSequence:
        """The next `size` tokens of a prompt, or the token chosen last, `()` while it is not collected."""
        start, prompt, end = request.computed, request.prompt, request.computed + size
        begins = start == request.lease.cached
        known = request.tokens[-1:] if len(request.tokens) == request.asked else []
        scheduled = ScheduledSequence(
            request.sequence,
            request.known[start:end] or tuple(known),
            start,
            request.lease.blocks,
            request.params if end >= len(request.known) and request.max_tokens else None,
            len(prompt),
            "all" if request.all_logits else "none",
            cached=prompt[:start] if begins else (),
            table=request.table,
            generated=request.known[len(prompt) :] if begins else (),
        )
        request.computed = scheduled.end
        request.asked += scheduled.sample is not None
        request.open_steps += 1
        if scheduled.is_prompt:
            self._pool.remember(request.keys[: scheduled.end], request.lease)
        return scheduled

    def _collect(self) -> None:
        ticket, step = self._open.popleft()
        for scheduled, output in zip(step, self._executor.collect(ticket), strict=True):
            request = self._running[scheduled.sequence]
            request.open_steps -= 1
            if request.finish is None:
                self._deliver(request, output)
            self._settle(request)

    def _deliver(self, request: Request, output: Output) -> None:
        """Passes an output to its request, with a finish reason if it is the last ("stop": end-of-sequence token)."""
        if output.error is not None:
            request.end("error", self._cause(output.error))
            return
        finish: FinishReason | None = None
        if output.sampled is not None:
            request.tokens.append(output.sampled.token)
            if output.sampled.token in self._eos and not request.ignore_eos:
                finish = "stop"
            elif len(request.tokens) == request.max_tokens:
                finish = "length"
        elif request.max_tokens == 0 and not request.in_prompt and request.open_steps == 0:
            finish = "length"
        try:
            if finish is not None:  # what it was computed from must be what was loaded
                self._demand_unchanged()
            request.receive(output, finish)
        except Exception as error:
            # an error in the text of one request must not end the others
            request.end("error", error)

    def _cause(self, error: BaseException) -> BaseException:
        """Why a step failed: the file was changed, or the error itself."""
        try:
            self._demand_unchanged()
        except LlmcError as changed:
            return changed
        return error

    def _settle(self, request: Request) -> None:
        """Frees the blocks of a finished request when no open step uses them."""
        if request.finish is not None and not request.open_steps:
            self._give_back(request)

    def _give_back(self, request: Request) -> None:
        """Frees the blocks of a request, which no open step uses."""
        del self._running[request.sequence]
        # what was computed of a failed request is not to be trusted
        held = (*request.prompt, *request.tokens)[: request.computed] if request.finish != "error" else ()
        self._pool.give(request.keys_of(held), request.lease, request.computed)
        if request.computed > request.lease.cached:
            self._executor.release(request.sequence)
