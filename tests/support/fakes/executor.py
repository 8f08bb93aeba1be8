"""An executor without a model: tests scheduler and engine against the rules of runtime/scheduling/executor.py.

Its cache holds token ids in blocks and its logits are a hash of what the cache holds: a wrong block, position or reuse
changes the tokens. Every rule is an assertion.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence

import numpy as np

from llmc.runtime.sampling.draw import Sampler
from llmc.runtime.sampling.params import SamplingParams
from llmc.runtime.scheduling.executor import Output, Samplers, Step, Work


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
    """`fail_at` raises in that step; `broken_token` makes the logits after this token NaN."""

    def __init__(
        self,
        *,
        depth: int = 1,
        block_tokens: int = 16,
        blocks: int = 12,
        mixed: bool = True,
        vocab: int = 31,
        max_context: int = 128,
        max_prefill: int = 8,
        max_rows: int = 5,
        shares: bool = False,
        sequences: int = 1000,
        fail_at: int | None = None,
        broken_token: int | None = None,
    ) -> None:
        self.depth, self.block_tokens, self.blocks, self.mixed = depth, block_tokens, blocks, mixed
        self.vocab, self.max_context = vocab, max_context
        self.max_prefill, self.max_rows = max_prefill, max_rows
        self.shares, self.sequences, self.notes = shares, sequences, ()
        self.fail_at, self.broken_token = fail_at, broken_token
        self.steps: list[Step] = []
        self.closed = 0
        self._cache = np.full((blocks, block_tokens), -1, np.int64)
        self._samplers = Samplers()
        self._users: dict[int, set[int]] = {}
        self._blocks: dict[int, tuple[int, ...]] = {}
        self._params: dict[int, SamplingParams] = {}
        self._length: dict[int, int] = {}
        self._released: set[int] = set()
        self._open: deque[tuple[Step, tuple[Output, ...]]] = deque()

    def submit(self, step: Step) -> object:
        assert not self.closed
        self._check_step(step)
        if self.fail_at == len(self.steps):
            raise RuntimeError("the device is on fire")
        self.steps.append(step)
        ticket = (step, tuple(self._run(work) for work in step.work))
        self._open.append(ticket)
        assert len(self._open) <= self.depth + 1
        return ticket

    def collect(self, ticket: object) -> tuple[Output, ...]:
        assert self._open[0] is ticket, "tickets are collected in order"
        return self._open.popleft()[1]

    def release(self, sequence: int) -> None:
        assert all(work.sequence != sequence for step, _ in self._open for work in step.work), "released too early"
        for block in self._blocks.pop(sequence):
            self._users[block].remove(sequence)
            if not self.shares:
                self._cache[block] = -1
        del self._length[sequence]
        self._released.add(sequence)
        self._samplers.release(sequence)

    def close(self) -> None:
        self.closed += 1

    @property
    def live(self) -> int:
        """Sequences that are not released."""
        return len(self._blocks)

    def _check_step(self, step: Step) -> None:
        assert step.work, "an empty step"
        assert len({work.sequence for work in step.work}) == len(step.work), "a sequence twice in a step"
        prompts = [work for work in step.work if work.is_prompt]
        assert sum(len(work.tokens) for work in prompts) <= self.max_prefill
        assert sum(len(work.tokens) for work in prompts if work.rows == "all") <= self.max_rows
        assert self.mixed or not prompts or len(step.work) == 1, "a mixed step"
        for work in step.work:
            self._check_work(work)

    def _check_work(self, work: Work) -> None:
        name = work.sequence
        assert name not in self._released
        first = name not in self._blocks
        assert len(self._blocks) + first <= self.sequences, "too many sequences"
        assert work.start == self._length.get(name, len(work.cached)), "a gap or an overlap in positions"
        assert first or not work.cached
        if work.cached:
            assert self.shares and work.is_prompt and len(work.cached) % self.block_tokens == 0
            held = self._cache[list(work.blocks)].reshape(-1)[: work.start]
            assert tuple(held) == work.cached, "blocks that hold something else"
        assert work.end <= min(len(work.blocks) * self.block_tokens, self.max_context)
        if work.is_prompt:
            assert work.tokens and work.end <= work.prompt_tokens
            assert work.sample is None or work.end == work.prompt_tokens
        else:
            assert len(work.tokens) == 1 or (work.tokens == () and self.depth > 0)
            assert work.tokens in ((), (self._samplers.token(name),)), "not the token that was sampled"
            assert work.sample is not None
        assert self._blocks.setdefault(name, work.blocks) == work.blocks, "blocks changed"
        if work.sample is not None:
            assert self._params.setdefault(name, work.sample) == work.sample, "sampled in another way than before"
        for block in work.blocks:
            assert 0 <= block < self.blocks
            self._users.setdefault(block, set()).add(name)
        written = work.blocks[work.start // self.block_tokens : -(-work.end // self.block_tokens)]
        for block in written:
            assert self._users[block] == {name}, "a block of another sequence"

    def _run(self, work: Work) -> Output:
        tokens = work.tokens or (self._samplers.token(work.sequence),)
        rows = []
        for position, token in enumerate(tokens, work.start):
            block, offset = divmod(position, self.block_tokens)
            self._cache[work.blocks[block], offset] = token
            rows.append(position + 1)
        self._length[work.sequence] = work.end
        if work.sample is None and work.rows == "none":
            return self._samplers.output(work, None)
        history = self._cache[list(work.blocks)].reshape(-1)
        wanted = rows if work.rows == "all" else rows[-1:]
        logits = np.stack([fake_logits(history[:end].tolist(), self.vocab) for end in wanted])
        if tokens[-1] == self.broken_token:
            logits[-1, 3] = np.nan
        return self._samplers.output(work, logits)
