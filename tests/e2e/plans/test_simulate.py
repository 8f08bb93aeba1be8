"""A GPU profile without a GPU: its plan and kernels, interpreted, agree with the oracle of the same quantized graph."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path

import numpy as np
import pytest
from support.engines import NARROW, NARROW_BATCH, PICO, quantized_logits, relative, small_checkpoint, some_ids
from support.running import run_some

import llmc
from llmc.compiler.targets.simulate.device import SimulatedDevice
from llmc.runtime.engine_file.file import EngineFile
from llmc.runtime.errors import EngineError
from llmc.runtime.plan.executor import PagedExecutor
from llmc.runtime.sampling.draw import Sampler, draw
from llmc.runtime.sampling.params import SamplingParams
from llmc.runtime.sampling.philox import uniform
from llmc.runtime.scheduling.executor import ScheduledSequence
from llmc.runtime.scheduling.request import Request
from llmc.runtime.scheduling.scheduler import Scheduler

BOUND = 3e-2
"""Largest max|a-b|/max|b| of logits: activations are bfloat16 between operators."""


@contextmanager
def simulated(path: Path, *, batch: int | None = None) -> Iterator[PagedExecutor]:
    executor = PagedExecutor(EngineFile.open(path), "sm_90", SimulatedDevice, max_batch=batch)
    try:
        yield executor
    finally:
        executor.close()


FORMATS = ("none", "fp8", "nvfp4", "int4")
VOCAB = NARROW["vocab_size"]


@pytest.fixture(scope="module")
def small_engine(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """One layer (int8: two), room for four sequences of four blocks; the checkpoint lies beside it, same name."""
    folder = tmp_path_factory.mktemp("simulate")

    @cache
    def build(quantize: str) -> Path:
        checkpoint = small_checkpoint(
            folder / quantize,
            tokenizer=False,
            num_hidden_layers=2 if quantize == "int8" else 1,
            **NARROW,
        )
        path = folder / f"{quantize}.llmc"
        return llmc.build(checkpoint, path, targets=["cpu", "sm_90"], max_batch=NARROW_BATCH, quantize=quantize)

    return build


@pytest.fixture
def small(small_engine: Callable[[str], Path]) -> Path:
    return small_engine("int8")


def ids(count: int, seed: int) -> list[int]:
    return [token % VOCAB for token in some_ids(count, seed)]


def tokens_of(executor: PagedExecutor, requests: list[Request], *, together: bool = True) -> list[list[int]]:
    """The tokens of each request; all blocks are free in the end."""
    scheduler = Scheduler(executor)
    run_some(scheduler, requests, len(requests) if together else 1)
    assert scheduler.free_blocks == tuple(kind.blocks for kind in executor.caches)
    for request in requests:
        request.wait()
    return [request.tokens for request in requests]


def check_choices(path: Path, quantize: str, source: Path, prompt: list[int], tokens: list[int]) -> None:
    """Every token is the oracle's first choice, or within the bound of it."""
    logits = quantized_logits(path, quantize, [*prompt, *tokens], source)
    rows = logits[len(prompt) - 1 : -1]
    margin = rows.max(axis=1) - rows[np.arange(len(tokens)), tokens]
    assert (margin <= 2 * BOUND * np.abs(rows).max()).all()
    assert (margin > 0).sum() <= max(1, 0.2 * len(tokens))


def checkpoint_of(engine: Path) -> Path:
    return engine.with_suffix("")


def check_requests(path: Path, quantize: str, source: Path, prompts: list[list[int]], count: int = 16) -> None:
    """Prefill logits, then `count` greedy tokens of each request, of which three run together."""
    with simulated(path, batch=3) as executor:
        prompt = prompts[1]
        scheduled = ScheduledSequence(99, tuple(prompt), 0, ((0,),), None, len(prompt), rows="all")
        (output,) = executor.collect(executor.submit((scheduled,)))
        executor.release(99)
        assert output.logits is not None
        assert relative(output.logits, quantized_logits(path, quantize, prompt, source)) < BOUND
        found = tokens_of(executor, [Request(tuple(prompt), count) for prompt in prompts])
    for prompt, tokens in zip(prompts, found, strict=True):
        assert len(tokens) == count
        check_choices(path, quantize, source, prompt, tokens)


@pytest.mark.parametrize("quantize", ["none", *(pytest.param(name, marks=pytest.mark.soak) for name in FORMATS[1:])])
def test_three_requests_agree_with_the_oracle(small_engine: Callable[[str], Path], quantize: str):
    path = small_engine(quantize)
    check_requests(path, quantize, checkpoint_of(path), [ids(5, 1), ids(33, 2), ids(70, 3)])


@pytest.mark.soak
@pytest.mark.parametrize("quantize", FORMATS)
def test_the_bundled_checkpoint_agrees_with_its_oracle(tmp_path: Path, quantize: str):
    """The first three requests hold all six blocks; the fourth gets one that another has left, and shares the third's
    first."""
    path = llmc.build(
        PICO, tmp_path / "pico.llmc", targets=["cpu", "sm_90"], max_batch=3, max_context=128, quantize=quantize
    )
    prompts = [some_ids(50, 1), some_ids(55, 2), some_ids(70, 3)]
    check_requests(path, quantize, PICO, [*prompts, [*prompts[2][:64], 7, 8]], 16)


def test_prefill_logits_are_the_oracles_whatever_the_chunks(small: Path):
    prompt = ids(150, 4)
    expected = quantized_logits(small, "int8", prompt, checkpoint_of(small))
    with simulated(small) as executor:
        blocks, rows = ((3, 0, 2),), []
        for start, stop in ((0, 1), (1, 64), (64, 65), (65, 150)):
            scheduled = ScheduledSequence(0, tuple(prompt[start:stop]), start, blocks, None, len(prompt), rows="all")
            (output,) = executor.collect(executor.submit((scheduled,)))
            rows.append(output.logits)
    assert relative(np.concatenate(rows), expected) < BOUND


def test_requests_that_come_and_go_get_what_they_get_alone(small: Path):
    shared = ids(70, 5)
    prompts = [shared, ids(3, 6), [*shared[:66], 7], shared]

    @cache  # of equal prompts, one is enough
    def alone_of(*prompt: int) -> list[int]:
        with simulated(small, batch=1) as executor:
            return tokens_of(executor, [Request(prompt, 3)])[0]

    alone = [alone_of(*prompt) for prompt in prompts]
    with simulated(small, batch=2) as executor:
        assert tokens_of(executor, [Request(tuple(prompt), 3) for prompt in prompts]) == alone
    for prompt, tokens in zip(prompts, alone, strict=True):
        check_choices(small, "int8", checkpoint_of(small), prompt, tokens)


def test_the_device_draws_what_numpy_draws(small: Path):
    prompt = ids(9, 9)
    cases = [
        SamplingParams(temperature=0.8, seed=5),
        SamplingParams(temperature=1.3, top_k=7, seed=6),
        SamplingParams(temperature=1.0, top_p=0.7, min_p=0.02, seed=2**63 + 1),
        SamplingParams(temperature=0.9, top_k=50, top_p=0.9, seed=8, logprobs=3),
    ]
    for params in cases:
        with simulated(small, batch=1) as executor:
            scheduled = ScheduledSequence(0, tuple(prompt), 0, ((0,),), params, len(prompt), rows="last")
            (output,) = executor.collect(executor.submit((scheduled,)))
            assert output.logits is not None and params.seed is not None
            assert output.sampled is not None
            assert output.sampled.token == draw(output.logits[-1], params, uniform(params.seed, len(prompt)))
            if params.logprobs:
                assert len(output.sampled.top) == 3 and output.sampled.logprob is not None


MANY = tuple((token, 0.25) for token in range(40))
"""More biased tokens than the device has room for: the host chooses."""
EDITS = [
    SamplingParams(repetition_penalty=1.5, frequency_penalty=0.5, logit_bias=((9, 3.0), (400, 2.5)), logprobs=4),
    SamplingParams(presence_penalty=1.5, temperature=0.8, top_k=20, seed=3, logprobs=20),
    SamplingParams(repetition_penalty=0.7, temperature=1.2, top_p=0.8, seed=4),
    SamplingParams(repetition_penalty=1.3, logit_bias=MANY, logprobs=2),
]


def check_like_a_sampler(executor: PagedExecutor, sequence: int, prompt: list[int], params: SamplingParams) -> None:
    """Four tokens, each what `Sampler` makes of the very logits it was chosen from, and its log-probabilities too."""
    sampler = Sampler()
    sampler.feed(prompt)
    tokens = tuple(prompt)
    for start in (0, *range(len(prompt), len(prompt) + 3)):
        scheduled = ScheduledSequence(sequence, tokens, start, ((sequence % 2,),), params, len(prompt), rows="last")
        (output,) = executor.collect(executor.submit((scheduled,)))
        assert output.logits is not None and (sampled := output.sampled) is not None
        expected = sampler.sample(output.logits[-1], params, scheduled.end)
        assert sampled.token == expected.token
        assert sampled.logprob == pytest.approx(expected.logprob, abs=1e-5)
        assert [token for token, _ in sampled.top] == [token for token, _ in expected.top]
        assert [p for _, p in sampled.top] == pytest.approx([p for _, p in expected.top], abs=1e-5)
        tokens = ()
    executor.release(sequence)


def test_penalties_biases_and_logprobs_are_those_of_the_host(small: Path):
    """One after the other in the same slot: what a sequence before it held must be forgotten."""
    with simulated(small, batch=1) as executor:
        for sequence, params in enumerate(EDITS):
            check_like_a_sampler(executor, sequence, ids(9, 10 + sequence), params)


@pytest.mark.soak
def test_penalties_do_not_depend_on_company_or_on_a_shared_prompt(small: Path):
    """The second request reads the first one's blocks, so the device knows only the end of its prompt."""
    prompts = [tuple(ids(70, 11)), (*ids(64, 11), 1, 2, 3), tuple(ids(5, 12))]
    params = [SamplingParams(frequency_penalty=1.0), SamplingParams(repetition_penalty=1.8), SamplingParams()]
    tokens = {}
    for together in (False, True):
        with simulated(small, batch=3) as executor:
            requests = [Request(prompt, 5, choice) for prompt, choice in zip(prompts, params, strict=True)]
            tokens[together] = tokens_of(executor, requests, together=together)
    assert tokens[True] == tokens[False]
    assert len(set(tokens[True][0])) == 5


def test_the_next_turn_reads_the_blocks_of_prompt_and_answer(small: Path):
    """The first turn computes 64 positions: its block holds two tokens of the answer."""
    with simulated(small, batch=1) as executor:
        first = Request(tuple(ids(62, 21)), 3)
        tokens_of(executor, [first])
        turn = (*first.prompt, *first.tokens, *ids(4, 22))
        scheduler = Scheduler(executor)
        for request in (Request(first.prompt, 3), second := Request(turn, 3)):
            run_some(scheduler, [request], 1)
        assert second.lease.cached == 64
    with simulated(small, batch=1) as executor:
        (alone,) = tokens_of(executor, [Request(turn, 3)])
    assert second.tokens == alone
    check_choices(small, "int8", checkpoint_of(small), [*turn], second.tokens)


def test_a_plan_of_other_kernels_is_refused(small: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("llmc.compiler.targets.simulate.device.source_digest", lambda: "0" * 64)
    with (
        pytest.raises(EngineError, match="with this llmc's kernels\n  found: a plan made with others"),
        simulated(small),
    ):
        pass
