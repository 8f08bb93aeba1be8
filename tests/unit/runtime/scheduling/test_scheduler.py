"""The scheduler against a fake executor that asserts every rule: any schedule gives the tokens of a request alone."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support.fakes.executor import FakeExecutor, fake_logits, one_by_one

from llmc.runtime.errors import EngineError, RecipeError
from llmc.runtime.sampling.params import SamplingParams
from llmc.runtime.scheduling.executor import CacheKind, Output
from llmc.runtime.scheduling.request import FinishReason, Request
from llmc.runtime.scheduling.scheduler import Scheduler

SAMPLED = SamplingParams(temperature=1.0, seed=11, repetition_penalty=1.2, frequency_penalty=0.5)
CPU_LIKE = {"depth": 0, "mixed": False, "block_tokens": 64, "blocks": 3, "max_context": 64}

TABLES: list[Callable[[int], int]] = [
    lambda length: 0,
    lambda length: 22 if length > 21 else 0,  # longrope
    lambda length: length if length > 12 else 0,  # dynamic
]
KEPT: dict[str, Any] = {"blocks": 20, "rings": (CacheKind(4, 32, 20),), "max_context": 128}


class Noted(Request):
    """A request that keeps its outputs, and lets nothing come after its end."""

    def receive(self, output: Output, finish: FinishReason | None) -> None:
        assert self.finish is None, "an output after the end"
        self.outputs = [*getattr(self, "outputs", []), output]
        super().receive(output, finish)


def drain(scheduler: Scheduler, limit: int = 2000) -> None:
    while not scheduler.idle:
        scheduler.step()
        limit -= 1
        assert limit, "the scheduler does not end"


def all_free(scheduler: Scheduler, executor: FakeExecutor) -> bool:
    return scheduler.free_blocks == tuple(kind.blocks for kind in executor.caches) and executor.live == 0


@st.composite
def workloads(draw: st.DrawFn) -> list[tuple[int, Request, int | None]]:
    """(step of arrival, request, number of tokens after which it is cancelled) each."""
    requests = []
    for index in range(draw(st.integers(1, 8))):
        prompt = tuple(draw(st.lists(st.integers(0, 30), min_size=1, max_size=40)))
        if requests and draw(st.booleans()):
            earlier = draw(st.sampled_from(requests))[1]
            spoken = earlier.prompt + tuple(one_by_one(earlier.prompt, earlier.params, earlier.max_tokens, 31))
            prompt = (spoken[: draw(st.integers(1, 40))] + prompt)[:40]
        params = draw(
            st.sampled_from([SamplingParams(), SAMPLED, SamplingParams(temperature=1.5, top_p=0.9, seed=index)])
        )
        request = Noted(prompt, draw(st.integers(1, 20)), params)
        requests.append((draw(st.integers(0, 25)), request, draw(st.none() | st.integers(0, 10))))
    return requests


@settings(max_examples=80, deadline=None)
@given(
    workload=workloads(),
    depth=st.integers(0, 2),
    mixed=st.booleans(),
    layout=st.sampled_from([(16, 12), (4, 30), (64, 2), (64, 1)]),
    max_prefill=st.sampled_from([1, 8, 64]),
    eos=st.sampled_from([(), (3, 4, 5, 6)]),
    shares=st.booleans(),
    rings=st.lists(st.sampled_from([(3, 10, None), (2, 64, 40), (9, 33, 20)]), max_size=2),
    sequences=st.integers(1, 8),
    tables=st.sampled_from(TABLES),
)
def test_every_schedule_gives_the_tokens_of_a_request_alone(
    workload: list[tuple[int, Request, int | None]],
    depth: int,
    mixed: bool,
    layout: tuple[int, int],
    max_prefill: int,
    eos: tuple[int, ...],
    shares: bool,
    rings: list[tuple[int, int, int | None]],
    sequences: int,
    tables: Callable[[int], int],
) -> None:
    each = [CacheKind(count * -(-positions // layout[0]), positions, window) for count, positions, window in rings]
    executor = FakeExecutor(
        depth=depth,
        mixed=mixed,
        block_tokens=layout[0],
        blocks=layout[1],
        max_context=64,
        max_prefill=max_prefill,
        rings=tuple(each),
        shares=shares and not each,
        sequences=sequences,
        tables=tables,
    )
    scheduler = Scheduler(executor, eos)
    arrivals = sorted(workload, key=lambda item: item[0])
    running: list[tuple[Request, int | None]] = []
    step = 0
    while arrivals or not scheduler.idle:
        while arrivals and arrivals[0][0] <= step:
            _, request, cancel_after = arrivals.pop(0)
            running.append((scheduler.add(request), cancel_after))
        for request, cancel_after in running:
            if len(request.tokens) == cancel_after:
                scheduler.cancel(request)
        scheduler.step()
        step += 1
        assert step < 3000
    for request, _ in running:
        alone = one_by_one(request.prompt, request.params, request.max_tokens, executor.vocab, eos)
        if request.finish == "cancelled":
            assert request.tokens == alone[: len(request.tokens)]
        else:
            assert request.tokens == alone
            assert request.finish == ("stop" if alone[-1] in eos else "length")
    assert all_free(scheduler, executor)


@pytest.mark.parametrize("depth", [0, 1])
def test_prompt_chunks_and_decode_steps_take_turns_where_they_cannot_mix(depth: int) -> None:
    executor = FakeExecutor(depth=depth, mixed=False, block_tokens=64, blocks=3, max_context=64, max_prefill=4)
    scheduler = Scheduler(executor)
    scheduler.add(Request((1, 2), 30))
    for _ in range(4):
        scheduler.step()
    before = len(executor.steps)
    scheduler.add(Request(tuple(range(16)), 20))
    scheduler.add(Request(tuple(range(9)), 20))
    drain(scheduler)
    kinds = ["prompt" if step[0].is_prompt else "decode" for step in executor.steps[before : before + 14]]
    assert kinds == ["prompt", "decode"] * 7
    assert len(executor.steps[before + 13]) == 3


def test_a_mixed_step_has_all_decodes_and_a_budget_of_prompt_tokens() -> None:
    executor = FakeExecutor(max_prefill=8, blocks=40)
    scheduler = Scheduler(executor)
    for length in (5, 9, 1):
        scheduler.add(Request(tuple(range(length)), 6))
    drain(scheduler)
    sizes = [[len(scheduled.tokens) for scheduled in step] for step in executor.steps[:4]]
    assert sizes == [[5, 3], [0, 6, 1], [0, 0, 0], [0, 0, 0]]


def test_a_pipelined_executor_gets_the_next_step_before_the_token_is_known() -> None:
    executor = FakeExecutor(depth=1)
    scheduler = Scheduler(executor)
    request = scheduler.add(Request((1, 2, 3), 5))
    scheduler.step()
    assert request.tokens == []
    scheduler.step()
    assert len(request.tokens) == 1
    assert executor.steps[1][0].tokens == ()
    drain(scheduler)
    assert len(request.tokens) == 5


def test_surplus_tokens_of_a_pipelined_executor_are_dropped() -> None:
    alone = one_by_one((1, 2, 3), SamplingParams(), 8, 31)
    executor = FakeExecutor(depth=2)
    scheduler = Scheduler(executor, [alone[2]])
    request = scheduler.add(Request((1, 2, 3), 8))
    drain(scheduler)
    assert (request.tokens, request.finish) == (alone[:3], "stop")
    assert len(executor.steps) > 3, "the executor ran ahead"
    assert all_free(scheduler, executor)


def test_a_shared_prefix_is_computed_once() -> None:
    executor = FakeExecutor(shares=True, block_tokens=4, max_prefill=64)
    scheduler = Scheduler(executor)
    prompt = tuple(range(13))
    scheduler.add(Request(prompt, 2))
    scheduler.step()
    for other in ((*prompt[:9], 30), prompt, (9, *prompt)):
        scheduler.add(Request(other, 2))
    drain(scheduler)
    starts = {}
    for scheduled in (scheduled for step in executor.steps for scheduled in step if scheduled.is_prompt):
        starts.setdefault(scheduled.sequence, (scheduled.start, len(scheduled.tokens)))
    assert starts == {0: (0, 13), 1: (8, 2), 2: (12, 1), 3: (0, 14)}
    assert all_free(scheduler, executor)
    again = scheduler.add(Request(prompt, 2))
    drain(scheduler)
    assert again.tokens == one_by_one(prompt, SamplingParams(), 2, 31), "after its first users"


def test_the_next_turn_of_a_conversation_reads_the_blocks_of_prompt_and_answer() -> None:
    executor = FakeExecutor(shares=True, block_tokens=4, max_prefill=64)
    scheduler = Scheduler(executor)
    first = scheduler.add(Request((1, 2, 3, 4, 5, 6), 7))
    drain(scheduler)
    second = scheduler.add(Request((*first.prompt, *first.tokens, 7, 8), 4))
    drain(scheduler)
    assert second.lease.cached == 12, "13 positions were computed, three blocks are full"
    assert second.tokens == one_by_one(second.prompt, SamplingParams(), 4, 31)


def test_what_a_failed_request_computed_is_not_used_again() -> None:
    executor = FakeExecutor(depth=0, broken_token=29, **KEPT)
    scheduler = Scheduler(executor)
    failed = scheduler.add(Request((1, 2, 29), 6))
    drain(scheduler)
    assert failed.finish == "error"
    again = scheduler.add(Request((1, 2, 3), 6))
    drain(scheduler)
    assert again.lease.cached == 0 and again.tokens == one_by_one((1, 2, 3), SamplingParams(), 6, 31)


@pytest.mark.parametrize("depth", [0, 1])
@pytest.mark.parametrize(("dropped", "cached"), [(0, 59), (12, 47), (13, 0)])
def test_a_kept_sequence_is_continued_if_its_ring_holds_the_window(depth: int, dropped: int, cached: int) -> None:
    """A ring of 32 positions for a window of 20: of 59 computed positions it has the last 32."""
    executor = FakeExecutor(depth=depth, **KEPT)
    scheduler = Scheduler(executor)
    first = scheduler.add(Request(tuple(range(30)), 30))
    drain(scheduler)
    spoken = (*first.prompt, *first.tokens)[: 59 - dropped]
    request = scheduler.add(Request((*spoken, 30, 30), 3))
    drain(scheduler)
    assert request.lease.cached == cached
    assert request.tokens == one_by_one(request.prompt, SamplingParams(), 3, 31)
    assert all_free(scheduler, executor)


def test_a_kept_sequence_is_not_given_up_for_a_short_beginning_or_while_there_is_room() -> None:
    scheduler = Scheduler(FakeExecutor(**KEPT))
    turns = [tuple(range(20)), (0, 1, 2, *range(29, 12, -1))]
    for prompt, cached in ((turns[0], 0), (turns[1], 0), ((*turns[0], 5), 20), ((*turns[1], 5), 20)):
        request = scheduler.add(Request(prompt, 2))
        drain(scheduler)
        assert request.lease.cached == cached


def test_shared_blocks_are_taken_back_when_room_is_needed() -> None:
    executor = FakeExecutor(shares=True, block_tokens=4, blocks=4, max_prefill=64)
    scheduler = Scheduler(executor)
    for prompt in ((1,) * 8, (2,) * 14, (1,) * 8):
        request = scheduler.add(Request(prompt, 2))
        drain(scheduler)
        assert request.tokens == one_by_one(prompt, SamplingParams(), 2, 31)
    assert [step[0].start for step in executor.steps if step[0].is_prompt] == [0, 0, 0]


def test_penalties_count_the_tokens_of_a_shared_prefix() -> None:
    executor = FakeExecutor(shares=True, block_tokens=4, max_prefill=64)
    scheduler = Scheduler(executor)
    prompt = (1, 2, 3, 4, 5, 6, 7, 8, 9)
    for _ in range(2):
        request = scheduler.add(Request(prompt, 8, SAMPLED))
        drain(scheduler)
        assert request.tokens == one_by_one(prompt, SAMPLED, 8, 31)


def test_end_of_sequence_can_be_ignored() -> None:
    alone = one_by_one((1, 2, 3), SamplingParams(), 8, 31)
    scheduler = Scheduler(FakeExecutor(), [alone[2]])
    request = scheduler.add(Request((1, 2, 3), 8, ignore_eos=True))
    drain(scheduler)
    assert request.tokens == alone


def test_a_large_request_is_not_overtaken_for_ever() -> None:
    executor = FakeExecutor(block_tokens=16, blocks=4, max_context=64)
    scheduler = Scheduler(executor)
    scheduler.add(Request((1,), 15))
    large = scheduler.add(Request((2,) * 40, 20))
    small = [scheduler.add(Request((3,), 5)) for _ in range(20)]
    while large.finish is None:
        scheduler.step()
        assert not any(request.finish for request in small)
    drain(scheduler)


@pytest.mark.parametrize("options", [{}, CPU_LIKE], ids=["mixed", "cpu"])
def test_all_logits_come_in_chunks_in_order(options: dict[str, int]) -> None:
    executor = FakeExecutor(**options)  # type: ignore[arg-type]
    scheduler = Scheduler(executor)
    prompt = tuple(i % 31 for i in range(29))
    scored, other = Noted(prompt, 0, all_logits=True), Request((5, 6), 4)
    scheduler.add(scored)
    scheduler.add(other)
    drain(scheduler)
    rows = np.concatenate([output.logits for output in scored.outputs if output.logits is not None])
    assert (rows == np.stack([fake_logits(prompt[: i + 1], 31) for i in range(29)])).all()
    assert scored.finish == "length"
    assert other.tokens == one_by_one((5, 6), SamplingParams(), 4, 31)


def test_bad_logits_end_one_request_and_no_other() -> None:
    alone = one_by_one((1, 2), SamplingParams(), 6, 31)
    executor = FakeExecutor(broken_token=29)
    scheduler = Scheduler(executor)
    failed = scheduler.add(Request((1, 29), 6))
    other = scheduler.add(Request((1, 2), 6))
    drain(scheduler)
    assert failed.finish == "error" and isinstance(failed.error, EngineError) and not failed.tokens
    assert other.tokens == alone
    assert all_free(scheduler, executor)


def test_generation_ends_where_the_cache_ends() -> None:
    executor = FakeExecutor(max_context=32)
    scheduler = Scheduler(executor)
    request = scheduler.add(Request((1,) * 30, 500))
    drain(scheduler)
    assert len(request.tokens) == 2 and request.finish == "length"


@pytest.mark.parametrize(
    ("request_", "message"),
    [
        (Request((), 1), "expected a prompt of at least one token"),
        (Request((1, 31), 1), "expected token ids from 0 to 30 in the prompt\n  found: token id 31"),
        (Request((-1,), 1), "in the prompt\n  found: token id -1"),
        (
            Request((1,) * 128, 1),
            "cannot run a prompt of 128 tokens\n  found: room for 128 tokens.*\n  try: a prompt of at most 127",
        ),
        (
            Request((1,) * 129, 0, all_logits=True),
            "cannot run a prompt of 129 tokens\n.*\n  try: a prompt of at most 128",
        ),
        (Request((1,), 1, SamplingParams(logit_bias=((40, 1.0),))), "token id 40"),
    ],
)
def test_what_can_never_run_is_refused_at_once(request_: Request, message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        Scheduler(FakeExecutor()).add(request_)


def test_few_blocks_bound_a_request_too() -> None:
    scheduler = Scheduler(FakeExecutor(blocks=2, block_tokens=16))
    assert scheduler.capacity == 32
    with pytest.raises(RecipeError, match="room for 32 tokens"):
        scheduler.add(Request((1,) * 40, 1))


def test_a_ring_takes_the_same_blocks_of_a_long_request_and_of_a_short_one() -> None:
    executor = FakeExecutor(blocks=0, rings=(CacheKind(4, 20),), block_tokens=16, max_context=128)
    scheduler = Scheduler(executor)
    assert scheduler.capacity == 128
    requests = [scheduler.add(Request((index,) * 100, 9)) for index in range(3)]
    scheduler.step()
    assert scheduler.free_blocks == (0,) and executor.live == 1
    drain(scheduler)
    assert [request.tokens for request in requests] == [
        one_by_one((index,) * 100, SamplingParams(), 9, 31) for index in range(3)
    ]
    assert all_free(scheduler, executor)


def test_a_request_waits_until_every_kind_of_cache_has_room() -> None:
    executor = FakeExecutor(blocks=8, rings=(CacheKind(1, 16),), block_tokens=16)
    scheduler = Scheduler(executor)
    for _ in range(2):
        scheduler.add(Request((1, 2), 4))
    scheduler.step()
    assert scheduler.free_blocks == (7, 0) and executor.live == 1
    drain(scheduler)
    assert all_free(scheduler, executor)


def test_only_a_cache_that_keeps_everything_is_shared() -> None:
    with pytest.raises(AssertionError, match="is shared"):
        Scheduler(FakeExecutor(shares=True, blocks=0, rings=(CacheKind(4, 20),)))


def test_a_cancelled_sequence_whose_ring_ran_on_is_not_continued() -> None:
    """Two steps ahead of the fourth token, the ring of three blocks has lost the oldest positions."""
    ring = CacheKind(3, 10)
    executor = FakeExecutor(depth=2, mixed=False, block_tokens=4, blocks=30, max_prefill=1, rings=(ring,), sequences=1)
    scheduler = Scheduler(executor)
    first = scheduler.add(Noted((0,) * 9, 6))
    while len(first.tokens) < 4:
        scheduler.step()
    scheduler.cancel(first)
    drain(scheduler)
    then = scheduler.add(Noted((*(0,) * 9, *first.tokens[:3]), 1))
    drain(scheduler)
    assert then.tokens == one_by_one(then.prompt, then.params, 1, executor.vocab)
