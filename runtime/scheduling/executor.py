"""What the scheduler asks of a device: so that one scheduler serves the cpu, GPUs and a fake one in tests.

The rules both sides keep:
* A sequence is first scheduled after its `cached` tokens; each next time it starts where it last ended. `blocks` stays
  the same and covers, of every kind of cache, all positions that the kind will ever keep of the sequence.
  They belong to the sequence alone until `release`, but for the blocks of its cached tokens: those are read by several,
  and written by none. Only an executor with one kind of cache, which keeps all positions, `shares`.
* `sample`, where it is not None, stays the same for a sequence.
* A step is a tuple of scheduled sequences, which run at once. It holds a sequence at most once, and at most
  `max_prefill` prompt tokens. With `mixed` False a step is either one sequence with prompt tokens, or any number of
  sequences with one generated token each.
* At most `depth` + 1 tickets are open; they are collected in the order of their submission. A step runs as if all steps
  before it were done.
* `collect` gives one Output per scheduled sequence, in the step's order.
* Of the prompt tokens of one step, at most `max_rows` belong to sequences that want "all" rows.
* At most `sequences` sequences are under way: a step has held them, and `release` has not been called.
* `release` is called once per sequence, when all its steps have been collected.
* One thread at a time calls an executor.
* What is wrong with one sequence is its Output's `error`. An exception of submit or collect ends all of them.
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass
from typing import Any, Literal, Protocol

import numpy as np

from ..errors import EngineError, LlmcError, RecipeError
from ..sampling.draw import Sampled, Sampler
from ..sampling.params import SamplingParams

Rows = Literal["none", "last", "all"]
MAX_ROWS = 128
"""Rows of logits per step where all are wanted: with 128k tokens of vocabulary 64 MiB of float32."""
Ticket = Any
"""Whatever an executor needs to find a submitted step again; the scheduler only hands it back."""


@dataclass(frozen=True, slots=True)
class CacheKind:
    """A kind of cache: blocks in its pool, and the most positions of a sequence that it keeps at once.

    positions None: all that a sequence will ever have. Else its blocks of a sequence are a ring over the latest ones.
    """

    blocks: int
    positions: int | None = None

    def kept(self, length: int) -> int:
        """Positions that a sequence of `length` positions needs blocks for."""
        return length if self.positions is None else min(length, self.positions)


@dataclass(frozen=True, slots=True)
class ScheduledSequence:
    """New tokens of one sequence for one step.

    tokens are the ids at positions start, start + 1, ...; `()` stands for the one token the executor sampled last for
    this sequence (only if depth > 0). sample: choose the token after the last position. The first prompt_tokens
    positions of the sequence are its prompt. rows: which logits to give back: none, of the last token, or of all
    tokens. cached: only in its first step: the prompt's tokens whose keys and values the blocks already hold.
    blocks: those of the sequence, for each kind of cache in the executor's order.
    """

    sequence: int
    tokens: tuple[int, ...]
    start: int
    blocks: tuple[tuple[int, ...], ...]
    sample: SamplingParams | None
    prompt_tokens: int
    rows: Rows = "none"
    cached: tuple[int, ...] = ()

    @property
    def end(self) -> int:
        """The position after the last token: the cache's length after this step, and where a sampled token goes."""
        return self.start + (len(self.tokens) or 1)

    @property
    def is_prompt(self) -> bool:
        """True if the tokens are prompt (prompt and generated tokens are never mixed)."""
        return self.start < self.prompt_tokens

    def select_rows(self, logits: np.ndarray | None) -> np.ndarray | None:
        """What of its logits f32 [R, V] is given back."""
        return None if logits is None or self.rows == "none" else logits if self.rows == "all" else logits[-1:]


@dataclass(frozen=True, slots=True)
class Output:
    """The result of a scheduled sequence: a token if sampled, logits f32 [rows, V] if wanted (the receiver's own)."""

    sampled: Sampled | None = None
    logits: np.ndarray | None = None
    error: LlmcError | None = None


class Executor(Protocol):
    """A loaded model with KV `caches` of one or more kinds, in blocks of `block_tokens` positions each.

    notes: what a user should be told of its loading.
    """

    notes: tuple[str, ...]
    block_tokens: int
    caches: tuple[CacheKind, ...]
    sequences: int
    shares: bool
    mixed: bool
    depth: int
    vocab: int
    max_context: int
    max_prefill: int
    max_rows: int

    def submit(self, step: tuple[ScheduledSequence, ...]) -> Ticket:
        """Starts a step."""

    def collect(self, ticket: Ticket) -> tuple[Output, ...]:
        """Waits for a step's results."""
        ...

    def release(self, sequence: int) -> None:
        """The sequence is over; forgets it."""

    def close(self) -> None:
        """Frees everything; open tickets, if a step has failed, are dropped."""


class Samplers:
    """The sampling half of an executor whose logits are in host memory: one Sampler per sequence."""

    def __init__(self) -> None:
        self._samplers: defaultdict[int, Sampler] = defaultdict(Sampler)

    def output(self, scheduled: ScheduledSequence, logits: np.ndarray | None) -> Output:
        """The Output of one scheduled sequence from its logits f32 [R, V], the last row being that of its last token.

        Logits may be None if it neither samples nor wants rows. Those of rows "last" and "all" are given out as they
        are: the caller must not write to them again. Non-finite logits become the Output's error, and no token.
        """
        sampler = self._samplers[scheduled.sequence]
        if scheduled.is_prompt:
            sampler.feed(scheduled.cached + scheduled.tokens)
        wanted = scheduled.select_rows(logits)
        if logits is None or scheduled.sample is None:
            return Output(logits=wanted)
        try:
            return Output(sampler.sample(logits[-1], scheduled.sample, scheduled.end), wanted)
        except LlmcError as error:
            return Output(error=error)

    def token(self, sequence: int) -> int:
        """What `tokens == ()` stands for; 0 after a failed sampling, whose sequence is about to be released."""
        return self._samplers[sequence].last

    def release(self, sequence: int) -> None:
        """Forgets a sequence."""
        self._samplers.pop(sequence, None)


def sequence_count(asked: int | None, most: int) -> int:
    """Sequences at once: as many as asked for, at most those of the profile."""
    if most < 1:
        raise EngineError(
            "a profile for at least one sequence", found=f"max_batch {most}", fix="build the engine again"
        )
    if asked is not None and asked < 1:
        raise RecipeError(f"max_batch = {asked}", found="out of range", fix=f"a number from 1 to {most}")
    return most if asked is None else min(asked, most)
