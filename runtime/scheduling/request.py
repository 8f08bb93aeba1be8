"""One request on its way from tokens to text, seen from both ends: the loop's thread fills it, a caller reads it."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from queue import Empty, SimpleQueue
from threading import Event as Flag
from typing import Literal, Protocol

import numpy as np

from ..sampling.draw import Sampled
from .scheduler import Event

FinishReason = Literal["stop", "length", "cancelled"]
_POLL_S = 0.2
"""Longest wait without a chance for Ctrl-C, where a platform's locks cannot be interrupted."""


@dataclass(frozen=True, slots=True)
class Timings:
    """Seconds to load the engine and to the first token; tokens per second after it (0 if fewer than two)."""

    load_s: float
    ttft_s: float
    decode_tokens_per_s: float


@dataclass(frozen=True, slots=True)
class Result:
    """A finished request.

    text is without stop string and end-of-sequence token; token_ids holds all generated tokens, an end-of-sequence
    token and those of a stop string included. logprobs has one entry per token if they were asked for.
    """

    text: str
    token_ids: list[int]
    prompt_tokens: int
    completion_tokens: int
    finish_reason: FinishReason
    logprobs: tuple[Sampled, ...]
    timings: Timings


@dataclass(frozen=True, slots=True)
class Piece:
    """What one token added, maybe no text. The last piece has a finish_reason, and no token if it was cancelled."""

    text: str
    token: int | None
    sampled: Sampled | None = None
    finish_reason: FinishReason | None = None


class Text(Protocol):
    """Where tokens become text: runtime/text/stream.py's TextStream, or NoText."""

    stopped: bool

    @property
    def text(self) -> str: ...
    def push(self, token: int) -> str: ...
    def finish(self) -> str: ...


class NoText:
    """The text of an engine without a tokenizer."""

    stopped = False
    text = ""

    def push(self, token: int) -> str:
        return ""

    def finish(self) -> str:
        return ""


class Generation:
    """The Listener of a text request."""

    def __init__(self, text: Text, prompt_tokens: int, load_s: float, logprobs: bool) -> None:
        self.pieces: SimpleQueue[Piece | None] = SimpleQueue()
        self.done = Flag()
        self._text = text
        self._prompt_tokens = prompt_tokens
        self._load_s = load_s
        self._tokens: list[int] = []
        self._logprobs: list[Sampled] | None = [] if logprobs else None
        self._reason: FinishReason = "cancelled"
        self._error: BaseException | None = None
        self._started = self._first = self._last = time.perf_counter()

    def receive(self, event: Event) -> bool:
        output = event.output
        if output.error is not None:
            self.end(output.error)
        if output.token is None:
            return False
        self._last = time.perf_counter()
        if not self._tokens:
            self._first = self._last
        self._tokens.append(output.token)
        sampled = None
        if self._logprobs is not None:
            sampled = Sampled(output.token, output.logprob, output.top)
            self._logprobs.append(sampled)
        text = "" if event.finish == "stop" else self._text.push(output.token)
        stopped = self._text.stopped
        if event.finish is None and not stopped:
            self.pieces.put(Piece(text, output.token, sampled))
            return False
        text += self._text.finish()
        self._reason = "stop" if self._text.stopped or event.finish == "stop" else "length"
        self.pieces.put(Piece(text, output.token, sampled, self._reason))
        self._close()
        return True

    def end(self, error: BaseException | None) -> None:
        self._error = error
        if error is None:
            self.pieces.put(Piece(self._text.finish(), None, None, "cancelled"))
        self._close()

    def result(self) -> Result:
        """Waits for the end; raises what the request failed with."""
        wait(self.done)
        if self._error is not None:
            raise self._error
        count = len(self._tokens)
        seconds = self._last - self._first
        rate = (count - 1) / seconds if count > 1 and seconds > 0 else 0.0
        timings = Timings(self._load_s, self._first - self._started, rate)
        logprobs = tuple(self._logprobs or ())
        return Result(self._text.text, self._tokens, self._prompt_tokens, count, self._reason, logprobs, timings)

    def _close(self) -> None:
        self.pieces.put(None)
        self.done.set()


class Stream:
    """An iterator over the pieces of a running request, which is cancelled when the iterator is closed or dropped."""

    def __init__(self, generation: Generation, cancel: Callable[[], None]) -> None:
        self._generation = generation
        self._cancel = cancel
        self._over = False

    def __iter__(self) -> Stream:
        return self

    def __next__(self) -> Piece:
        if self._over:
            raise StopIteration
        piece = None
        while piece is None:
            try:
                piece = self._generation.pieces.get(timeout=_POLL_S)
            except Empty:
                continue
            if piece is None:
                self._over = True
                self._generation.result()
                raise StopIteration
        return piece

    def cancel(self) -> None:
        """Ends the request, soon; from any thread. A reader gets a last piece with finish_reason "cancelled"."""
        self._cancel()

    def close(self) -> None:
        """Ends the request and the iterator; harmless if it is over."""
        self._over = True
        if not self._generation.done.is_set():
            self._cancel()

    def result(self) -> Result:
        """Waits for the end and gives the whole; raises what the request failed with."""
        return self._generation.result()

    def __enter__(self) -> Stream:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __del__(self) -> None:
        self.close()


class LogitsRequest:
    """The Listener of a request for the logits of all tokens, written into one array f32 [T,V] as chunks arrive."""

    def __init__(self, tokens: int) -> None:
        self._tokens = tokens
        self._rows: np.ndarray | None = None
        self._filled = 0
        self._done = Flag()
        self._error: BaseException | None = None
        self._cancelled = False

    def receive(self, event: Event) -> bool:
        chunk = event.output.logits
        if chunk is not None:
            if self._rows is None:
                self._rows = np.empty((self._tokens, chunk.shape[1]), np.float32)
            self._rows[self._filled : self._filled + len(chunk)] = chunk
            self._filled += len(chunk)
        if event.finish is not None:
            self._error = event.output.error
            self._done.set()
        return False

    def end(self, error: BaseException | None) -> None:
        self._error, self._cancelled = error, error is None
        self._done.set()

    def result(self) -> np.ndarray | None:
        """Waits for the end; None if cancelled; raises what the request failed with."""
        wait(self._done)
        if self._error is not None:
            raise self._error
        return None if self._cancelled else self._rows


def wait(flag: Flag) -> None:
    """Waits, and can be interrupted by Ctrl-C."""
    while not flag.wait(_POLL_S):
        pass
