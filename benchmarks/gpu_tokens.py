"""Compares one engine's tokens on two paths: the best logits of each step, and whether a different token is a tie.

Two correct paths round differently, so logits differ by noise, and the best two can swap if they are closer than twice
the noise. After the first different token the contexts differ, so only the first counts.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace

import numpy as np

from llmc.runtime.plan.plan import BLOCK_TOKENS
from llmc.runtime.scheduling.executor import Executor, ScheduledSequence
from llmc.runtime.scheduling.request import Request
from llmc.runtime.scheduling.scheduler import Scheduler

KEPT = 8
"""Best logits that are kept of a step: enough for their differences to tell the noise."""


@dataclass(frozen=True)
class Trace:
    """What follows a prompt, one step at a time: each step's best token ids and their logits, best first."""

    prompt: tuple[int, ...]
    ids: tuple[tuple[int, ...], ...]
    logits: tuple[tuple[float, ...], ...]

    @property
    def tokens(self) -> list[int]:
        return [best[0] for best in self.ids]

    def margin(self, step: int) -> float:
        """The best logit minus the second."""
        return self.logits[step][0] - self.logits[step][1]


@dataclass(frozen=True)
class Noise:
    """How two paths differ on the same contexts: the largest difference of a logit that was kept, the largest logit,
    and (trace, step) of every best token that is another."""

    worst: float
    largest: float
    others: tuple[tuple[int, int], ...]


def traces(executor: Executor, prompts: Sequence[Sequence[int]], count: int) -> list[Trace]:
    """What follows the prompts, all of them in every step, each at its best."""
    return [_traced(prompt, rows) for prompt, rows in zip(prompts, _rows(executor, prompts, count, None), strict=True)]


def noise(executor: Executor, expected: Sequence[Trace]) -> Noise:
    """Follow traces of equal length, whatever token is best on this path."""
    rows = _rows(executor, [one.prompt for one in expected], len(expected[0].ids), [one.tokens for one in expected])
    worst, largest, others = 0.0, 0.0, []
    for index, (one, found) in enumerate(zip(expected, rows, strict=True)):
        for step, row in enumerate(found):
            ids = list(one.ids[step])
            worst = max(worst, float(np.abs(row[ids] - np.array(one.logits[step])).max()))
            largest = max(largest, float(np.abs(row).max()))
            if int(row.argmax()) != ids[0]:
                others.append((index, step))
    return Noise(worst, largest, tuple(others))


def _rows(
    executor: Executor, prompts: Sequence[Sequence[int]], count: int, forced: Sequence[Sequence[int]] | None
) -> list[list[np.ndarray]]:
    """By prompt, the logits that each of its next tokens is chosen by; prompts come one after the other."""
    each = -(-(max(map(len, prompts)) + count) // BLOCK_TOKENS)
    blocks = [(tuple(range(i * each, (i + 1) * each)),) for i in range(len(prompts))]
    rows: list[list[np.ndarray]] = []
    for i, prompt in enumerate(prompts):
        row = None
        for start in range(0, len(prompt), executor.max_prefill):
            part = tuple(prompt[start : start + executor.max_prefill])
            (row,) = _step(executor, [ScheduledSequence(i, part, start, blocks[i], None, len(prompt), rows="last")])
        assert row is not None, "a prompt has a token"
        rows.append([row])
    for step in range(count - 1):
        fed = [int(row[-1].argmax()) for row in rows] if forced is None else [tokens[step] for tokens in forced]
        step = [
            ScheduledSequence(i, (fed[i],), len(prompt) + step, blocks[i], None, len(prompt), rows="last")
            for i, prompt in enumerate(prompts)
        ]
        for known, row in zip(rows, _step(executor, step), strict=True):
            known.append(row)
    for i in range(len(prompts)):
        executor.release(i)
    return rows


def _step(executor: Executor, step: Sequence[ScheduledSequence]) -> list[np.ndarray]:
    """The last row of logits of every step."""
    rows = []
    for output in executor.collect(executor.submit(tuple(step))):
        if output.error is not None or output.logits is None:
            raise output.error or RuntimeError("a step without logits")
        rows.append(output.logits[-1])
    return rows


def _traced(prompt: Sequence[int], rows: Sequence[np.ndarray]) -> Trace:
    best = [np.argsort(-row, kind="stable")[:KEPT] for row in rows]
    logits = tuple(tuple(map(float, row[ids])) for row, ids in zip(rows, best, strict=True))
    return Trace(tuple(prompt), tuple(tuple(map(int, ids)) for ids in best), logits)


def generate(executor: Executor, requests: Collection[Request]) -> tuple[list[list[int]], int]:
    """The tokens of a copy of each request, all added at once, and the blocks that are free in the end."""
    scheduler = Scheduler(executor)
    running = [scheduler.add(replace(request)) for request in requests]
    while not scheduler.idle:
        scheduler.step()
    for request in running:
        request.wait()
    return [request.tokens for request in running], sum(scheduler.free_blocks)


def first_difference(found: Sequence[int], expected: Sequence[int]) -> int | None:
    """The first place where two answers differ; one that ends early differs there. None if they are equal."""
    for place, (a, b) in enumerate(zip(found, expected, strict=False)):
        if a != b:
            return place
    return None if len(found) == len(expected) else min(len(found), len(expected))


def tie(expected: Trace, place: int, noise: float) -> bool:
    """True if noise alone can explain another token at a step."""
    return expected.margin(place) < 2 * noise
