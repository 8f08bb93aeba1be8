"""An executor without a model: tests scheduler and engine against the rules of runtime/scheduling/executor.py.

Its caches hold token ids and numbers of tables in blocks, and its logits are a hash of all ids of a sequence: a wrong
block, position or reuse shows in what a cache holds of them. Every rule is an assertion.
"""

from __future__ import annotations

from collections import defaultdict, deque
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from llmc.runtime.engine_file.info import EngineInfo
from llmc.runtime.sampling.draw import Sampler
from llmc.runtime.sampling.params import SamplingParams
from llmc.runtime.scheduling.blocks import SharedPool
from llmc.runtime.scheduling.executor import CacheKind, Output, Pool, Samplers, ScheduledSequence
from llmc.runtime.scheduling.kept import KeptPool

INFO = EngineInfo(
    path=Path("fake.llmc"),
    name=None,
    hub_id=None,
    revision=None,
    licence=None,
    recipe=None,
    architecture="FakeForCausalLM",
    family="fake",
    parameters=1234,
    layers=1,
    hidden_size=1,
    vocab_size=31,
    dtype="BF16",
    formats={},
    profile="cpu",
    target="cpu",
    profiles=("cpu",),
    max_context=128,
    max_batch=8,
    chat=False,
    content_digest="0" * 64,
)
"""What an engine with such an executor says of itself."""


def fake_logits(history: Sequence[int], vocab: int) -> np.ndarray:
    """f32 [V] that depend on every token of the history and on their order."""
    state = 1469598103934665603
    for token in history:
        state = (state ^ (token + 1)) * 1099511628211 % 2**64
    return np.random.default_rng(state).standard_normal(vocab, np.float32) * 3


def one_by_one(
    prompt: Sequence[int], params: SamplingParams, max_tokens: int, vocab: int, eos: Sequence[int] = ()
) -> list[int]:
    """The tokens of a request that is alone in the world: what every schedule must give."""
    sampler, history = Sampler(), list(prompt)
    sampler.feed(prompt)
    while len(history) < len(prompt) + max_tokens:
        history.append(sampler.sample(fake_logits(history, vocab), params, len(history)).token)
        if history[-1] in eos:
            break
    return history[len(prompt) :]


class FakeExecutor:
    """`blocks` of all positions (0: no such cache), and `rings`; its pool is one that `shares`, or keeps sequences.

    `fail_at` raises in that step; `broken_token` makes the logits after this token NaN.
    """

    def __init__(
        self,
        *,
        depth: int = 1,
        block_tokens: int = 16,
        blocks: int = 12,
        rings: tuple[CacheKind, ...] = (),
        mixed: bool = True,
        vocab: int = 31,
        max_context: int = 128,
        max_prefill: int = 8,
        max_rows: int = 5,
        shares: bool = False,
        sequences: int = 1000,
        fail_at: int | None = None,
        broken_token: int | None = None,
        tables: Callable[[int], int] = lambda length: 0,
    ) -> None:
        self._tables = tables
        self.depth, self.block_tokens, self.mixed = depth, block_tokens, mixed
        self.caches = ((CacheKind(blocks),) if blocks else ()) + rings
        self.vocab, self.max_context = vocab, max_context
        self.max_prefill, self.max_rows = max_prefill, max_rows
        self.shares, self.sequences, self.notes = shares, sequences, ()
        self.fail_at, self.broken_token = fail_at, broken_token
        self.steps: list[tuple[ScheduledSequence, ...]] = []
        self.closed = 0
        self._cache = [np.full((kind.blocks, block_tokens), -1, np.int64) for kind in self.caches]
        self._samplers = Samplers()
        self._users: defaultdict[tuple[int, int], set[int]] = defaultdict(set)
        self._blocks: dict[int, tuple[tuple[int, ...], ...]] = {}
        self._params: dict[int, SamplingParams] = {}
        self._history: dict[int, list[int]] = {}
        self._released: set[int] = set()
        self._table: dict[int, int] = {}
        self._again: dict[int, tuple[int, ...]] = {}
        """The known tokens of a sequence that starts again, from its prompt on."""
        self._open: deque[tuple[tuple[ScheduledSequence, ...], tuple[Output, ...]]] = deque()

    def table_of(self, length: int) -> int:
        return self._tables(length)

    def pool(self) -> Pool:
        return (
            SharedPool(self.caches[0], self.block_tokens) if self.shares else KeptPool(self.caches, self.block_tokens)
        )

    def submit(self, step: tuple[ScheduledSequence, ...]) -> object:
        assert not self.closed
        self._check_step(step)
        if self.fail_at == len(self.steps):
            raise RuntimeError("the device is on fire")
        self.steps.append(step)
        ticket = (step, tuple(self._run(scheduled) for scheduled in step))
        self._open.append(ticket)
        assert len(self._open) <= self.depth + 1
        return ticket

    def collect(self, ticket: object) -> tuple[Output, ...]:
        assert self._open[0] is ticket, "tickets are collected in order"
        return self._open.popleft()[1]

    def release(self, sequence: int) -> None:
        assert all(scheduled.sequence != sequence for step, _ in self._open for scheduled in step), "released too early"
        for kind, blocks in enumerate(self._blocks.pop(sequence)):
            for block in blocks:
                self._users[kind, block].remove(sequence)
        del self._history[sequence]
        self._released.add(sequence)
        self._samplers.release(sequence)

    def close(self) -> None:
        self.closed += 1

    @property
    def live(self) -> int:
        """Sequences that are not released."""
        return len(self._blocks)

    def _check_step(self, step: tuple[ScheduledSequence, ...]) -> None:
        assert step, "an empty step"
        assert len({scheduled.sequence for scheduled in step}) == len(step), "a sequence twice in a step"
        prompts = [one for one in step if one.end <= self._known(one)]
        assert sum(len(scheduled.tokens) for scheduled in prompts) <= self.max_prefill
        assert sum(len(scheduled.tokens) for scheduled in prompts if scheduled.rows == "all") <= self.max_rows
        assert self.mixed or not prompts or len(step) == 1, "a mixed step"
        for scheduled in step:
            self._check_scheduled(scheduled)

    def _check_scheduled(self, scheduled: ScheduledSequence) -> None:
        name = scheduled.sequence
        assert name not in self._released
        first = name not in self._blocks
        assert len(self._blocks) + first <= self.sequences, "too many sequences"
        assert scheduled.start == len(self._history.get(name, scheduled.cached)), "a gap or an overlap in positions"
        assert first or not scheduled.cached
        assert self._table.setdefault(name, scheduled.table) == scheduled.table >= self._tables(scheduled.end)
        if scheduled.cached:
            assert scheduled.is_prompt and not (self.shares and len(scheduled.cached) % self.block_tokens)
        assert scheduled.end <= self.max_context
        if scheduled.is_prompt:
            assert scheduled.tokens and scheduled.end <= scheduled.prompt_tokens
            assert scheduled.sample is None or scheduled.end == self._known(scheduled)
        elif scheduled.end <= self._known(scheduled):
            start, again = scheduled.start - scheduled.prompt_tokens, self._again[name]
            assert scheduled.tokens == again[start : start + len(scheduled.tokens)], "not the tokens of before"
            assert (scheduled.sample is not None) == (scheduled.end == self._known(scheduled))
        else:
            assert len(scheduled.tokens) == 1 or (scheduled.tokens == () and self.depth > 0)
            assert scheduled.tokens in ((), (self._samplers.token(name),)), "not the token that was sampled"
            assert scheduled.sample is not None
        assert self._blocks.setdefault(name, scheduled.blocks) == scheduled.blocks, "blocks changed"
        if scheduled.sample is not None:
            assert self._params.setdefault(name, scheduled.sample) == scheduled.sample, (
                "sampled in another way than before"
            )
        for index, (kind, blocks) in enumerate(zip(self.caches, scheduled.blocks, strict=True)):
            assert len(set(blocks)) == len(blocks) and all(0 <= block < kind.blocks for block in blocks)
            assert len(blocks) * self.block_tokens >= kind.kept(scheduled.end), "too few blocks"
            if kind.positions is not None:
                assert (len(blocks) - 1) * self.block_tokens < kind.positions, "more blocks than a ring has"
            for block in blocks:
                self._users[index, block].add(name)
            for position in range(scheduled.start, scheduled.end):
                assert self._users[index, self._place(blocks, position)[0]] == {name}, "a block of another sequence"
        if scheduled.cached:
            self._check_held(scheduled, list(scheduled.cached))

    def _known(self, scheduled: ScheduledSequence) -> int:
        """Tokens of the sequence that were known before its first step."""
        again = self._again.setdefault(scheduled.sequence, scheduled.generated)
        assert not scheduled.generated or (scheduled.generated == again and not scheduled.start)
        return scheduled.prompt_tokens + len(again)

    def _place(self, blocks: tuple[int, ...], position: int) -> tuple[int, int]:
        """The block and the place in it of a position: where there are fewer blocks than positions, a ring."""
        index, offset = divmod(position, self.block_tokens)
        return blocks[index % len(blocks)], offset

    def _check_held(self, scheduled: ScheduledSequence, history: list[int]) -> None:
        for kind, blocks, cache in zip(self.caches, scheduled.blocks, self._cache, strict=True):
            reads = min(kind.window or len(history), kind.kept(len(history)))
            held = range(len(history) - reads, len(history))
            found = [int(cache[self._place(blocks, position)]) for position in held]
            table = scheduled.table << 32
            assert found == [table | history[position] for position in held], "blocks that hold something else"

    def _run(self, scheduled: ScheduledSequence) -> Output:
        tokens = scheduled.tokens or (self._samplers.token(scheduled.sequence),)
        history = self._history.setdefault(scheduled.sequence, list(scheduled.cached))
        for position, token in enumerate(tokens, scheduled.start):
            history.append(token)
            for blocks, cache in zip(scheduled.blocks, self._cache, strict=True):
                cache[self._place(blocks, position)] = scheduled.table << 32 | token
        self._check_held(scheduled, history)
        if scheduled.sample is None and scheduled.rows == "none":
            return self._samplers.output(scheduled, None)
        ends = range(scheduled.start + 1, scheduled.end + 1) if scheduled.rows == "all" else [scheduled.end]
        logits = np.stack([fake_logits(history[:end], self.vocab) for end in ends])
        if tokens[-1] == self.broken_token:
            logits[-1, 3] = np.nan
        return self._samplers.output(scheduled, logits)
