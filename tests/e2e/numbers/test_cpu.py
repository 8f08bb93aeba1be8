"""The cpu executor against the oracle: however prompts are cut and slots are shared, the numbers are the same."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest
from support.engines import CONTEXT, PicoEngine, checkpoint_logits, quantized_logits, relative, some_ids
from support.paths import PICO

import llmc
from llmc.runtime.cpu.executor import CpuExecutor, thread_count
from llmc.runtime.dtypes import WEIGHT_FORMATS
from llmc.runtime.engine_file.file import EngineFile
from llmc.runtime.errors import RecipeError
from llmc.runtime.sampling.params import SamplingParams
from llmc.runtime.scheduling.executor import Output, Rows, ScheduledSequence
from llmc.runtime.scheduling.request import Request
from llmc.runtime.scheduling.scheduler import Scheduler

TOLERANCE = 1e-4
GREEDY = SamplingParams()


@contextmanager
def opened(path: Path, *, slots: int | None = None, threads: int | None = None) -> Iterator[CpuExecutor]:
    executor = CpuExecutor(EngineFile.open(path), "cpu", threads=threads, max_batch=slots)
    try:
        yield executor
    finally:
        executor.close()


@pytest.fixture(scope="module")
def path(pico_engine: PicoEngine) -> Path:
    return pico_engine("none")


@pytest.fixture(scope="module")
def executor(path: Path) -> Iterator[CpuExecutor]:
    """Four slots; a test releases what it uses."""
    with opened(path, slots=4) as executor:
        yield executor


def submit(executor: CpuExecutor, *step: ScheduledSequence) -> tuple[Output, ...]:
    return executor.collect(executor.submit(step))


def feed(
    executor: CpuExecutor, sequence: int, ids: list[int], chunk: int, rows: Rows = "all", block: int = 0
) -> list[np.ndarray]:
    """Feed a prompt in chunks; the logits of each."""
    parts = []
    for first in range(0, len(ids), chunk):
        tokens = tuple(ids[first : first + chunk])
        (output,) = submit(executor, ScheduledSequence(sequence, tokens, first, ((block,),), None, len(ids), rows))
        assert output.logits is not None
        parts.append(output.logits)
    return parts


def logits_of(executor: CpuExecutor, ids: list[int], chunk: int = CONTEXT) -> np.ndarray:
    """All logits of one sequence alone, prefilled in chunks."""
    try:
        return np.concatenate(feed(executor, 999, ids, chunk))
    finally:
        executor.release(999)


def test_prefill_is_the_oracle_whatever_the_chunks(executor: CpuExecutor):
    ids = some_ids(70)
    expected = checkpoint_logits(PICO, ids)
    for chunk in (70, 64, 33, 7, 1):
        assert relative(logits_of(executor, ids, chunk), expected) < TOLERANCE, f"chunks of {chunk}"


def test_rows_are_none_the_last_or_all(executor: CpuExecutor):
    ids = some_ids(9)
    whole = logits_of(executor, ids)
    (last,) = feed(executor, 0, ids, 9, rows="last")
    executor.release(0)
    assert last.shape == (1, 4096)
    assert relative(last, whole[-1:]) < TOLERANCE
    (output,) = submit(executor, ScheduledSequence(1, tuple(ids), 0, ((0,),), None, 9))
    assert output == Output()
    (output,) = submit(executor, ScheduledSequence(1, (5,), 9, ((0,),), GREEDY, 9))
    executor.release(1)
    assert output.logits is None and output.sampled is not None
    assert output.sampled.token == int(logits_of(executor, [*ids, 5])[-1].argmax())


def test_the_whole_context_can_be_filled(executor: CpuExecutor):
    ids = some_ids(CONTEXT)
    feed(executor, 0, ids[:-1], CONTEXT)
    (output,) = submit(executor, ScheduledSequence(0, (ids[-1],), CONTEXT - 1, ((0,),), GREEDY, CONTEXT - 1, "last"))
    executor.release(0)
    assert output.logits is not None
    assert relative(output.logits, checkpoint_logits(PICO, ids)[-1:]) < TOLERANCE


@dataclass
class Running:
    """A sequence of the random schedule: its block, its ids so far, how many are fed, the logits seen by position."""

    block: int
    ids: list[int]
    prompt: int
    fed: int
    seen: dict[int, np.ndarray]


class Schedule:
    """Random steps within the rules of `scheduling/executor.py`: join, prefill a chunk, decode any subset, leave."""

    def __init__(self, executor: CpuExecutor, seed: int) -> None:
        self._executor = executor
        self._random = random.Random(seed)
        self._running: dict[int, Running] = {}
        self._next = 0
        self.finished: list[Running] = []

    def step(self) -> None:
        prompts = [name for name, one in self._running.items() if one.fed < one.prompt]
        decoding = [name for name in self._running if name not in prompts]
        acts: list[Callable[[], None]] = []
        if len(self._running) < self._executor.sequences:
            acts.append(self._join)
        if prompts:
            acts += [lambda: self._chunk(self._random.choice(prompts))] * 2
        if decoding:
            acts += [lambda: self._decode(self._random.sample(decoding, self._random.randint(1, len(decoding))))] * 4
        if self._running:
            acts.append(lambda: self.leave(self._random.choice(list(self._running))))
        self._random.choice(acts)()

    def leave(self, name: int) -> None:
        self.finished.append(self._running.pop(name))
        self._executor.release(name)

    def leave_all(self) -> None:
        for name in list(self._running):
            self.leave(name)

    def _join(self) -> None:
        ids = some_ids(self._random.choice([1, 2, 5, 17, 40]), seed=self._next)
        free = {*range(self._executor.sequences)} - {one.block for one in self._running.values()}
        self._running[self._next] = Running(self._random.choice(sorted(free)), ids, len(ids), 0, {})
        self._chunk(self._next)
        self._next += 1

    def _chunk(self, name: int) -> None:
        one = self._running[name]
        count = self._random.randint(1, one.prompt - one.fed)
        tokens = tuple(one.ids[one.fed : one.fed + count])
        sample = GREEDY if one.fed + count == one.prompt else None
        scheduled = ScheduledSequence(name, tokens, one.fed, ((one.block,),), sample, one.prompt, "last")
        self._take(one, scheduled, *submit(self._executor, scheduled))

    def _decode(self, names: list[int]) -> None:
        step = [self._token(name) for name in names]
        for name, scheduled, output in zip(names, step, submit(self._executor, *step), strict=True):
            self._take(self._running[name], scheduled, output)

    def _token(self, name: int) -> ScheduledSequence:
        one = self._running[name]
        return ScheduledSequence(name, (one.ids[-1],), one.fed, ((one.block,),), GREEDY, one.prompt, "last")

    def _take(self, one: Running, scheduled: ScheduledSequence, output: Output) -> None:
        assert output.logits is not None
        one.fed = scheduled.end
        one.seen[scheduled.end - 1] = output.logits[0]
        if output.sampled is not None:
            one.ids.append(output.sampled.token)


@pytest.mark.parametrize("seed", range(5))
def test_sequences_that_come_and_go_do_not_see_each_other(executor: CpuExecutor, seed: int):
    schedule = Schedule(executor, seed)
    for _ in range(120):
        schedule.step()
    schedule.leave_all()
    assert len(schedule.finished) > 8
    assert sum(len(one.seen) for one in schedule.finished) > 100
    for one in schedule.finished:
        alone = logits_of(executor, one.ids[: one.fed])
        for position, row in one.seen.items():
            assert relative(row, alone[position]) < TOLERANCE, f"position {position} of {one.ids}"
        for position in range(one.prompt, len(one.ids)):
            assert one.ids[position] == int(alone[position - 1].argmax())


def test_the_scheduler_gives_each_request_what_it_gets_alone(path: Path):
    requests = [Request(tuple(some_ids(size, seed=size)), new) for size, new in ((3, 9), (40, 2), (1, 12), (23, 5))]
    with opened(path, slots=3) as executor:
        executor.max_prefill = 16
        scheduler = Scheduler(executor)

        def tokens_of(arrivals: dict[int, Request]) -> list[list[int]]:
            """Requests by the step before which they arrive."""
            added: list[Request] = []
            step = 0
            while arrivals or not scheduler.idle:
                if step in arrivals:
                    added.append(scheduler.add(replace(arrivals.pop(step))))
                scheduler.step()
                step += 1
            return [request.tokens for request in added]

        alone = [tokens_of({0: request})[0] for request in requests]
        assert [len(tokens) for tokens in alone] == [9, 2, 12, 5]
        assert tokens_of(dict(zip((0, 1, 2, 5), requests, strict=True))) == alone
        assert scheduler.free_blocks == (3,)


def test_unknown_and_unfinished_sequences_can_be_released(executor: CpuExecutor):
    executor.release(12345)
    ids = some_ids(20)
    feed(executor, 0, ids, 20)
    submit(executor, ScheduledSequence(1, tuple(ids[:4]), 0, ((1,),), None, 20))
    feed(executor, 2, ids[:6], 6, block=2)
    executor.release(1)
    executor.release(1)
    step = [ScheduledSequence(name, (7,), size, ((name,),), GREEDY, size, "last") for name, size in ((2, 6), (0, 20))]
    outputs = submit(executor, *step)
    executor.release(2)
    executor.release(0)
    for output, prompt in zip(outputs, (ids[:6], ids), strict=True):
        assert output.logits is not None
        assert relative(output.logits, logits_of(executor, [*prompt, 7])[-1:]) < TOLERANCE


def test_more_sequences_than_slots_are_refused(path: Path):
    with opened(path, slots=2) as executor:
        assert executor.sequences == 2
        for name in range(2):
            submit(executor, ScheduledSequence(name, (1,), 0, ((name,),), None, 1))
        with pytest.raises(RecipeError, match="3 sequences at once\n  found: room for 2"):
            submit(executor, ScheduledSequence(2, (1,), 0, ((2,),), None, 1))
        executor.release(0)
        submit(executor, ScheduledSequence(2, (1,), 0, ((0,),), None, 1))


def test_slots_are_those_of_the_profile_or_fewer(path: Path):
    for asked, found in ((None, 8), (3, 3)):
        with opened(path, slots=asked) as executor:
            assert executor.sequences == found
    for wrong in (-1, 99):
        with pytest.raises(RecipeError, match=rf"expected max_batch from 1 to 8, .*\n  found: {wrong}"):
            llmc.load(path, max_batch=wrong)


def test_threads_are_those_asked_for(path: Path, monkeypatch: pytest.MonkeyPatch):
    ids = some_ids(12)
    found = []
    for threads in (1, 3):
        with opened(path, threads=threads) as executor:
            assert executor._loaded is not None
            (session,) = executor._loaded.sessions.values()
            assert session.get_session_options().intra_op_num_threads == threads
            found.append(logits_of(executor, ids))
    assert relative(found[0], found[1]) < TOLERANCE
    monkeypatch.setenv("LLMC_THREADS", "5")
    assert (thread_count(None), thread_count(2)) == (5, 2)
    monkeypatch.setenv("LLMC_THREADS", "")
    assert thread_count(None) >= 1
    for wrong in (0, -1, 5000):
        with pytest.raises(RecipeError, match=f"expected threads from 1 to 4096\n  found: '{wrong}'"):
            thread_count(wrong)


@pytest.fixture(scope="module")
def short(pico_engine: PicoEngine) -> Path:
    """An engine of 24 positions."""
    return pico_engine("int8", max_context=24)


def test_generation_past_the_end_has_finish_reason_length(short: Path):
    prompt = some_ids(20)
    with llmc.load(short) as engine:
        assert engine.max_context == 24
        ended = engine.generate(prompt, max_tokens=100, ignore_eos=True)
        assert (len(ended.token_ids), ended.finish_reason) == (4, "length")
        full = engine.generate([*prompt, 1, 2, 3], max_tokens=100, ignore_eos=True)
        assert (len(full.token_ids), full.finish_reason) == (1, "length")
        assert engine.logits([*prompt, 1, 2, 3, 4]).shape == (24, 4096)


def test_a_prompt_that_is_too_long_is_refused_with_counts(short: Path):
    with llmc.load(short) as engine:
        with pytest.raises(
            RecipeError, match=r"cannot run a prompt of 24 tokens\n.*room for 24 tokens.*\n.*at most 23 tokens"
        ):
            engine.generate(some_ids(24))
        with pytest.raises(RecipeError, match="cannot run a prompt of 25 tokens"):
            engine.logits(some_ids(25))


@pytest.mark.parametrize("quantize", WEIGHT_FORMATS)
def test_every_format_computes_what_its_oracle_does(pico_engine: PicoEngine, quantize: str):
    path, prompt = pico_engine(quantize), some_ids(8)
    with llmc.load(path) as engine:
        tokens = engine.generate(prompt, max_tokens=16, ignore_eos=True).token_ids
        assert len(tokens) == 16
        found = engine.logits([*prompt, *tokens])
    expected = quantized_logits(path, quantize, [*prompt, *tokens])
    with EngineFile.open(path) as opened:
        tolerance = opened.manifest.profiles["cpu"].tolerance
    assert relative(found, expected) < tolerance
    # greedy, up to what the tolerance of the numbers leaves open
    chosen = expected[len(prompt) - 1 : -1]
    margin = chosen.max(axis=1) - chosen[np.arange(16), tokens]
    assert margin.max() <= 2 * tolerance * np.abs(expected).max()
