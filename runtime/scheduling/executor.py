"""What the scheduler asks of a device: so that one scheduler serves the cpu, GPUs and a fake one in tests.

The rules both sides keep:
* A sequence's first work starts after its `cached` tokens; each next one starts where the last ended. `blocks` is the
  same in all works of a sequence and covers all positions it will ever have. It belongs to the sequence alone until
  `release`, but for the blocks of its cached tokens: those are read by several, and written by none.
* `sample` is the same in all works of a sequence that have one.
* A step holds a sequence at most once. Prompt tokens of one step number at most `max_prefill`. With `mixed` False a
  step is either one work with prompt tokens, or any number of works with one generated token each.
* At most `depth` + 1 tickets are open; they are collected in the order of their submission. A step runs as if all steps
  before it were done.
* `collect` gives one Output per work, in the step's order.
* Of the prompt tokens of one step, at most `max_rows` belong to works that want "all" rows.
* At most `sequences` sequences are under way: a step has held them, and `release` has not been called.
* `release` is called once per sequence, when all its works have been collected.
* One thread at a time calls an executor.
* What is wrong with one sequence is its Output's `error`. An exception of submit or collect ends all of them.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal, Protocol

import numpy as np

from ..errors import LlmcError
from ..sampling.draw import Sampler
from ..sampling.params import SamplingParams

Rows = Literal["none", "last", "all"]
MAX_ROWS = 128
"""Rows of logits per step where all are wanted: with 128k tokens of vocabulary 64 MiB of float32."""
Ticket = Any
"""Whatever an executor needs to find a submitted step again; the scheduler only hands it back."""


@dataclass(frozen=True, slots=True)
class Work:
    """New tokens of one sequence for one step.

    tokens are the ids at positions start, start + 1, ...; `()` stands for the one token the executor sampled last for
    this sequence (only if depth > 0). sample: choose the token after the last position. The first prompt_tokens
    positions of the sequence are its prompt. rows: which logits to give back: none, of the last token, or of all
    tokens. cached: in a sequence's first work, its prompt's tokens whose keys and values the blocks already hold.
    """

    sequence: int
    tokens: tuple[int, ...]
    start: int
    blocks: tuple[int, ...]
    sample: SamplingParams | None
    prompt_tokens: int
    rows: Rows = "none"
    cached: tuple[int, ...] = ()

    @property
    def end(self) -> int:
        """The position after the last token: the cache's length after this work, and where a sampled token goes."""
        return self.start + (len(self.tokens) or 1)

    @property
    def is_prompt(self) -> bool:
        """True if the tokens are prompt (a work never mixes prompt and generated tokens)."""
        return self.start < self.prompt_tokens


@dataclass(frozen=True, slots=True)
class Step:
    """What runs at once."""

    work: tuple[Work, ...]


@dataclass(frozen=True, slots=True)
class Output:
    """The result of one work: a token if one was sampled, logits f32 [rows, V] if wanted (the receiver's to keep)."""

    sequence: int
    token: int | None = None
    logprob: float | None = None
    top: tuple[tuple[int, float], ...] = ()
    logits: np.ndarray | None = None
    error: LlmcError | None = None


class Executor(Protocol):
    """A loaded model with a KV cache of `blocks` blocks of `block_tokens` positions each, which sequences may share.

    notes: what a user should be told of its loading.
    """

    notes: tuple[str, ...]
    block_tokens: int
    blocks: int
    sequences: int
    shares: bool
    mixed: bool
    depth: int
    vocab: int
    max_context: int
    max_prefill: int
    max_rows: int

    def submit(self, step: Step) -> Ticket:
        """Starts a step."""
        ...

    def collect(self, ticket: Ticket) -> tuple[Output, ...]:
        """Waits for a step's results."""
        ...

    def release(self, sequence: int) -> None:
        """The sequence is over; forgets it."""
        ...

    def close(self) -> None:
        """Frees everything; open tickets, if a step has failed, are dropped."""
        ...


class Samplers:
    """The sampling half of an executor whose logits are in host memory: one Sampler per sequence."""

    def __init__(self) -> None:
        self._samplers: dict[int, Sampler] = {}
        self._last: dict[int, int] = {}

    def output(self, work: Work, logits: np.ndarray | None) -> Output:
        """The Output of one work from its logits f32 [R, V], the last row being that of its last token.

        Logits may be None if the work neither samples nor wants rows. Those of rows "last" and "all" are given out as
        they are: the caller must not write to them again. Non-finite logits become the Output's error, and no token.
        """
        sampler = self._samplers.get(work.sequence)
        if sampler is None:
            sampler = self._samplers[work.sequence] = Sampler()
        if work.is_prompt:
            sampler.feed(work.cached + work.tokens)
        if logits is None:
            return Output(work.sequence)
        wanted = None if work.rows == "none" else logits if work.rows == "all" else logits[-1:]
        if work.sample is None:
            return Output(work.sequence, logits=wanted)
        try:
            sampled = sampler.sample(logits[-1], work.sample, work.end)
        except LlmcError as error:
            return Output(work.sequence, error=error)
        self._last[work.sequence] = sampled.token
        return Output(work.sequence, sampled.token, sampled.logprob, sampled.top, wanted)

    def token(self, sequence: int) -> int:
        """What `Work.tokens == ()` stands for; 0 after a failed sampling, whose sequence is about to be released."""
        return self._last.get(sequence, 0)

    def release(self, sequence: int) -> None:
        """Forgets a sequence."""
        self._samplers.pop(sequence, None)
        self._last.pop(sequence, None)
