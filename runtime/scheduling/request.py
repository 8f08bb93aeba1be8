"""One request from admission to its end: the scheduler keeps its progress in it, the loop's thread adds the outputs,
and a caller reads them."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import KW_ONLY, dataclass, field
from queue import Empty, SimpleQueue
from threading import Event
from typing import Any, Literal

import numpy as np

from ..errors import RecipeError
from ..guard.forks import refuse_after_fork
from ..sampling.draw import Sampled
from ..sampling.params import SamplingParams
from ..text.stream import TextStream
from .executor import Lease, Output

FinishReason = Literal["stop", "length", "cancelled", "error"]
_POLL_S = 0.2
"""Longest wait before Ctrl-C is handled, on platforms whose locks cannot be interrupted."""

_NO_LEASE = Lease((), 0)


@dataclass(eq=False)
class Request:
    """Token ids in, tokens out. The fields that are no parameters belong to the scheduler."""

    prompt: tuple[int, ...]
    max_tokens: int
    """0 (with all_logits) computes the prompt's logits and no token."""
    params: SamplingParams = field(default_factory=SamplingParams)
    _: KW_ONLY
    all_logits: bool = False
    ignore_eos: bool = False
    sequence: int = field(default=-1, init=False)
    lease: Lease = field(default=_NO_LEASE, init=False)
    """Its blocks, from admission on."""
    known: tuple[int, ...] = field(default=(), init=False)
    """Tokens to compute before the next one is chosen: the prompt, and if it starts again all tokens until then."""
    table: int = field(default=0, init=False)
    """The number of its rotary tables (`Executor.table_of`)."""
    keys: tuple[int, ...] = field(default=(), init=False)
    """`known` as the pool compares it (`keys_of`)."""
    computed: int = field(default=0, init=False)
    """Positions of submitted steps."""
    asked: int = field(default=0, init=False)
    """Tokens chosen by submitted steps."""
    open_steps: int = field(default=0, init=False)
    """Submitted steps that are not collected yet."""
    tokens: list[int] = field(default_factory=list, init=False)
    finish: FinishReason | None = field(default=None, init=False)
    """Set once, as the last change; "error" comes with `error`."""
    error: BaseException | None = field(default=None, init=False)
    done: Event = field(default_factory=Event, init=False, repr=False)
    process: int = field(default_factory=os.getpid, init=False, repr=False)
    """The one that computes it: in a child made by fork it never ends."""

    @property
    def in_prompt(self) -> bool:
        """True if the next step computes a chunk of the prompt, or of what is computed again."""
        return self.finish is None and self.computed < len(self.known)

    @property
    def can_decode(self) -> bool:
        """True if the next step chooses another token after a chosen one."""
        return self.finish is None and self.computed >= len(self.known) and self.asked < self.max_tokens

    @property
    def part_left(self) -> int:
        """Known tokens to compute that are all of the prompt, or all generated: a step never mixes them."""
        return (len(self.prompt) if self.computed < len(self.prompt) else len(self.known)) - self.computed

    def start(self, table_of: Callable[[int], int]) -> None:
        """Has all known tokens computed, with the tables of the prompt if those are for short sequences.

        Else with the tables of the last step: its token is not computed, so one token has the tables of its prompt.
        """
        self.known, self.computed = (*self.prompt, *self.tokens) if self.tokens else self.prompt, 0
        self.table = table_of(len(self.known))
        if self.table:
            self.table = table_of(len(self.prompt) + max(self.max_tokens, 1) - 1)
        self.keys = self.keys_of(self.known)

    def keys_of(self, tokens: tuple[int, ...]) -> tuple[int, ...]:
        """Tokens as the pool compares them: with other tables they have other keys and values."""
        return tuple([self.table << 32 | token for token in tokens]) if self.table else tokens

    def receive(self, output: Output, finish: FinishReason | None) -> None:
        """Takes an output, the last one if `finish` is given; runs on the loop's thread, so it must be quick."""
        if finish is not None:
            self.end(finish)

    def end(self, finish: FinishReason, error: BaseException | None = None) -> None:
        """Marks the request as finished; no output follows."""
        self.finish, self.error = finish, error
        self.done.set()

    def wait(self) -> None:
        """Waits for the end; raises the error that the request failed with."""
        refuse_after_fork(self.process)
        wait(self.done.wait)
        if self.error is not None:
            raise self.error


@dataclass(frozen=True, slots=True)
class Timings:
    """Seconds to load the engine and to the first token; tokens per second after it (0 if fewer than two)."""

    load_s: float
    ttft_s: float
    decode_tokens_per_s: float


@dataclass(frozen=True, slots=True)
class Result:
    """A finished request."""

    text: str
    """Without stop string and end-of-sequence token."""
    token_ids: list[int]
    """All generated tokens, with those of a stop string and an end-of-sequence token."""
    prompt_tokens: int
    cached_tokens: int
    """Those of the prompt that were not computed: an earlier request had left their keys and values."""
    completion_tokens: int
    finish_reason: FinishReason
    logprobs: tuple[Sampled, ...]
    """One entry per token if asked for, else empty."""
    timings: Timings


@dataclass(frozen=True, slots=True)
class Piece:
    """The text, perhaps "", of one token. The last piece has a finish_reason, and no token if it was cancelled."""

    text: str
    sampled: Sampled | None = None
    finish_reason: FinishReason | None = None

    @property
    def token(self) -> int | None:
        return None if self.sampled is None else self.sampled.token


@dataclass(eq=False, kw_only=True)
class TextRequest(Request):
    """A request whose tokens become pieces of text; a None in `pieces` follows the last."""

    text: TextStream
    load_s: float = 0.0
    pieces: SimpleQueue[Piece | None] = field(default_factory=SimpleQueue, init=False, repr=False)
    sampled: list[Sampled] = field(default_factory=list, init=False)
    started: float = field(default_factory=time.perf_counter, init=False)
    times: list[float] = field(default_factory=list, init=False)
    """When each token was ready."""

    def receive(self, output: Output, finish: FinishReason | None) -> None:
        if output.sampled is None:
            return
        self.times.append(time.perf_counter())
        self.sampled.append(output.sampled)
        text = "" if finish == "stop" else self.text.push(output.sampled.token)
        if finish is not None or self.text.stopped:
            text += self.text.finish()
            finish = "stop" if self.text.stopped else finish
        self.pieces.put(Piece(text, output.sampled, finish))
        super().receive(output, finish)

    def end(self, finish: FinishReason, error: BaseException | None = None) -> None:
        if finish == "cancelled":
            self.pieces.put(Piece(self.text.finish(), None, finish))
        super().end(finish, error)
        self.pieces.put(None)

    def result(self) -> Result:
        """Waits for the end; raises the error that the request failed with."""
        self.wait()
        assert self.finish is not None
        count, times = len(self.tokens), self.times or [self.started]
        seconds = times[-1] - times[0]
        rate = (count - 1) / seconds if count > 1 and seconds > 0 else 0.0
        timings = Timings(self.load_s, times[0] - self.started, rate)
        logprobs = tuple(self.sampled) if self.params.logprobs else ()
        prompt, cached = len(self.prompt), self.lease.cached
        return Result(self.text.text, self.tokens, prompt, cached, count, self.finish, logprobs, timings)


class Stream(Iterator[Piece], AbstractContextManager["Stream"]):
    """An iterator over the pieces of a running request; closing or dropping it cancels the request."""

    def __init__(self, request: TextRequest, cancel: Callable[[Request], None]) -> None:
        self.request = request
        self._cancel = cancel
        self._over = False

    def __next__(self) -> Piece:
        while not self._over:
            refuse_after_fork(self.request.process)
            try:
                piece = self.request.pieces.get(timeout=_POLL_S)
            except Empty:
                continue
            if piece is not None:
                return piece
            self._over = True
            self.request.wait()
        raise StopIteration

    def cancel(self) -> None:
        """Ends the request soon; any thread may call it. A reader gets a last piece with finish_reason "cancelled"."""
        self._cancel(self.request)

    def close(self) -> None:
        """Ends the request and the iterator; does nothing if they are over."""
        self._over = True
        if not self.request.done.is_set():
            self.cancel()

    def result(self) -> Result:
        """Waits for the end and returns the whole result; raises the error that the request failed with."""
        return self.request.result()

    def __exit__(self, *_: object) -> None:
        self.close()

    def __del__(self) -> None:
        self.close()


@dataclass(eq=False)
class LogitsRequest(Request):
    """A request for the logits of all tokens, written into one array ``f32 [T, V]`` as chunks arrive."""

    rows: np.ndarray | None = field(default=None, init=False, repr=False)
    filled: int = field(default=0, init=False)

    def receive(self, output: Output, finish: FinishReason | None) -> None:
        chunk = output.logits
        if chunk is not None:
            if self.rows is None:
                self.rows = np.empty((len(self.prompt), chunk.shape[1]), np.float32)
            self.rows[self.filled : self.filled + len(chunk)] = chunk
            self.filled += len(chunk)
        super().receive(output, finish)

    def result(self) -> np.ndarray:
        """Waits for the end; raises the error that the request failed with.

        Raises:
            RecipeError: the request was cancelled.
        """
        self.wait()
        if self.rows is None or self.finish != "length":
            raise RecipeError(f"cannot return the logits of {len(self.prompt)} tokens", found="a cancelled request")
        return self.rows


def wait(over: Callable[[float], Any]) -> None:
    """Waits until `over`, called with the seconds to wait, returns true; Ctrl-C interrupts it."""
    while not over(_POLL_S):
        pass
