"""The contract between the scheduler and a device: one scheduler serves the CPU, GPUs and a fake device in tests.

Rules for both sides:
* A sequence is first scheduled after its `cached` tokens; each later time it starts where it last ended. `blocks` stays
  the same and covers, for every kind of cache, all positions that the kind will ever keep of the sequence.
  They come from the executor's `pool` and belong to the sequence alone until it takes them back, except the full blocks
  of cached tokens: if the pool shares them, several sequences read them, and none writes them.
* A block keeps its contents when its sequence is released: the pool knows them and may give them to a later request.
* `sample`, if not None, stays the same for a sequence.
* A step is a tuple of scheduled sequences that run at once. It holds a sequence at most once, and at most `max_prefill`
  prompt tokens. With `mixed` False a step is either one sequence with prompt tokens, or any number of sequences with
  one generated token each.
* At most `depth` + 1 tickets are open; they are collected in the order of their submission. A step runs as if all steps
  before it were done.
* `collect` gives one Output per scheduled sequence, in the step's order.
* Of the prompt tokens of one step, at most `max_rows` belong to sequences that want "all" rows.
* All tokens of a sequence have the same `table`: one that needs another is released, and starts again with a new
  number.
* At most `sequences` sequences are in progress: scheduled at least once, and not released.
* `release` is called once per sequence, when all its steps have been collected.
* One thread at a time calls an executor.
* An error of one sequence is its Output's `error`. An exception of submit or collect ends all sequences.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol

import numpy as np

from ..errors import EngineError, LlmcError, RecipeError
from ..sampling.draw import Sampled, Sampler
from ..sampling.params import SamplingParams

Rows = Literal["none", "last", "all"]
MAX_ROWS = 128
"""Rows of logits per step for sequences with rows "all": 64 MiB of float32 for a vocabulary of 128k tokens."""
Ticket = Any
"""An executor's handle of a submitted step; the scheduler passes it back to `collect` unread."""


@dataclass(frozen=True, slots=True)
class CacheKind:
    """A kind of cache."""

    blocks: int
    """Blocks in its pool."""
    positions: int | None = None
    """Most positions of a sequence that it keeps, as a ring over the latest ones; None: all."""
    window: int | None = None
    """Positions of them that the next token reads; None: all."""

    def kept(self, length: int) -> int:
        """Positions that a sequence of `length` positions needs blocks for."""
        return length if self.positions is None else min(length, self.positions)


@dataclass(frozen=True, slots=True)
class Lease:
    """The blocks of one sequence."""

    blocks: tuple[tuple[int, ...], ...]
    """For each kind of cache in the executor's order."""
    cached: int
    """The first positions, whose keys and values the blocks already hold."""


class Pool(Protocol):
    """Gives the blocks of an executor's caches to sequences, and knows what they hold; called by the same thread."""

    @property
    def free(self) -> tuple[int, ...]:
        """Blocks that no sequence uses, for each kind of cache."""
        ...

    def take(self, prompt: Sequence[int], length: int, *, reuse: bool = True) -> Lease | None:
        """Blocks for `length` positions that begin with `prompt`, or None while sequences that run hold too much.

        At least the prompt's last token is computed, for its logits; without `reuse` the whole prompt is.

        Raises:
            ResourceError: there is too little memory, and no sequence runs.
        """
        ...

    def remember(self, tokens: Sequence[int], lease: Lease) -> None:
        """The blocks hold these first tokens of their sequence, or will before any later step."""

    def give(self, tokens: Sequence[int], lease: Lease, written: int) -> None:
        """Takes back the blocks of a finished sequence, of which they hold these first tokens. `written` positions
        were computed: more, if tokens that a step chose were not wanted any more."""


@dataclass(frozen=True, slots=True)
class ScheduledSequence:
    """New tokens of one sequence for one step."""

    sequence: int
    tokens: tuple[int, ...]
    """The ids at positions start, start + 1, ...; `()` stands for the one token that the executor sampled last for
    this sequence (only if depth > 0)."""
    start: int
    blocks: tuple[tuple[int, ...], ...]
    """The sequence's blocks, for each kind of cache in the executor's order."""
    sample: SamplingParams | None
    """How to choose the token after the last position; None: choose none."""
    prompt_tokens: int
    """The first positions of the sequence, which are its prompt."""
    rows: Rows = "none"
    """The logits to return: none, of the last token, or of all tokens."""
    cached: tuple[int, ...] = ()
    """In the sequence's first step, the prompt's tokens whose keys and values the blocks already hold."""
    table: int = 0
    """The number of its rotary tables (`Executor.table_of`)."""
    generated: tuple[int, ...] = ()
    """In the first step of a sequence that starts again, the tokens that it has generated: penalties count them."""

    @property
    def end(self) -> int:
        """The position after the last token: the cache's length after this step, and a sampled token's position."""
        return self.start + (len(self.tokens) or 1)

    @property
    def is_prompt(self) -> bool:
        """True if the tokens belong to the prompt (prompt and generated tokens are never mixed)."""
        return self.start < self.prompt_tokens

    def select_rows(self, logits: np.ndarray | None) -> np.ndarray | None:
        """The rows of its logits ``f32 [R, V]`` to return."""
        return None if logits is None or self.rows == "none" else logits if self.rows == "all" else logits[-1:]


@dataclass(frozen=True, slots=True)
class Output:
    """The result of a scheduled sequence: a token if sampled, and logits ``f32 [rows, V]``, owned by the receiver."""

    sampled: Sampled | None = None
    logits: np.ndarray | None = None
    error: LlmcError | None = None


class Executor(Protocol):
    """A loaded model with KV `caches` of one or more kinds, in blocks of `block_tokens` positions each."""

    notes: tuple[str, ...]
    """Messages for the user about its loading."""
    block_tokens: int
    caches: tuple[CacheKind, ...]
    sequences: int
    """Most sequences in progress."""
    mixed: bool
    """True if a step may hold prompt and generated tokens, of different sequences."""
    depth: int
    """Steps by which results may lag: at most depth + 1 steps are open."""
    vocab: int
    max_context: int
    max_prefill: int
    """Most prompt tokens of a step."""
    max_rows: int
    """Most prompt tokens of a step in sequences with rows "all"."""

    def table_of(self, length: int) -> int:
        """The number of the rotary tables of a sequence of `length` positions; 0 for short ones, and never smaller for
        longer ones."""
        ...

    def pool(self) -> Pool:
        """A new account of all blocks, in which none is used and nothing is known."""
        ...

    def submit(self, step: tuple[ScheduledSequence, ...]) -> Ticket:
        """Starts a step."""

    def collect(self, ticket: Ticket) -> tuple[Output, ...]:
        """Waits for a step's results."""
        ...

    def release(self, sequence: int) -> None:
        """Drops the state of a finished sequence."""

    def close(self) -> None:
        """Frees the model; drops open tickets, which remain after a failed step."""


class Samplers:
    """The sampling half of an executor whose logits are in host memory: one Sampler per sequence."""

    def __init__(self) -> None:
        self._samplers: defaultdict[int, Sampler] = defaultdict(Sampler)

    def output(self, scheduled: ScheduledSequence, logits: np.ndarray | None) -> Output:
        """The Output of one scheduled sequence from its logits ``f32 [R, V]``, whose last row is its last token's.

        Logits may be None if it neither samples nor returns rows. Rows "last" and "all" are returned without a copy:
        the caller must not write to them again. Non-finite logits become the Output's error, without a token.
        """
        sampler = self._samplers[scheduled.sequence]
        if scheduled.is_prompt:
            sampler.feed(scheduled.cached + scheduled.tokens)
        sampler.count(scheduled.generated)
        rows = scheduled.select_rows(logits)
        if logits is None or scheduled.sample is None:
            return Output(logits=rows)
        try:
            return Output(sampler.sample(logits[-1], scheduled.sample, scheduled.end), rows)
        except LlmcError as error:
            return Output(error=error)

    def token(self, sequence: int) -> int:
        """The token that `tokens == ()` stands for; 0 if sampling failed, after which the sequence is released."""
        return self._samplers[sequence].last

    def release(self, sequence: int) -> None:
        """Drops the state of a sequence."""
        self._samplers.pop(sequence, None)


def sequence_count(asked: int | None, most: int) -> int:
    """Sequences that run at once: `asked`, or all that the profile allows.

    Raises:
        EngineError: the profile allows none.
        RecipeError: `asked` is not from 1 to `most`.
    """
    if most < 1:
        raise EngineError(
            "expected a profile for at least one sequence", found=f"max_batch {most}", fix="build the engine again"
        )
    if asked is not None and not 1 <= asked <= most:
        fix = f"an engine that llmc build --max-batch {asked} makes" if asked > most else ""
        raise RecipeError(
            f"expected max_batch from 1 to {most}, for which the engine was built", found=str(asked), fix=fix
        )
    return most if asked is None else asked
