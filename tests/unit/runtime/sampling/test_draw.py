"""The sampler is checked against exact distributions, Random123's vectors, and plain definitions of each cut."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llmc.runtime.errors import EngineError, RecipeError
from llmc.runtime.sampling.draw import Sampled, Sampler, draw
from llmc.runtime.sampling.params import SamplingParams, defaults_of
from llmc.runtime.sampling.philox import philox4x32, uniform
from llmc.runtime.scheduling.executor import Samplers, ScheduledSequence

KNOWN_ANSWERS = [
    ((0, 0, 0, 0), (0, 0), (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8)),
    ((0xFFFFFFFF,) * 4, (0xFFFFFFFF,) * 2, (0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD)),
    (
        (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344),
        (0xA4093822, 0x299F31D0),
        (0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1),
    ),
]


@pytest.mark.parametrize(("counter", "key", "words"), KNOWN_ANSWERS)
def test_philox_gives_the_known_answers_of_random123(counter: Any, key: Any, words: Any) -> None:
    assert philox4x32(counter, key) == words
    arrays = tuple(np.array([0, word], np.uint64) for word in counter)
    drawn = philox4x32(arrays, key)  # type: ignore[arg-type]
    assert tuple(int(word[1]) for word in drawn) == words


def test_uniform_uses_all_bits_of_seed_and_position_and_stays_inside_the_interval() -> None:
    assert uniform(0, 0) == (0x6627E8D5 + 0.5) / 2**32
    draws = {uniform(seed, position) for seed in (0, 1, 1 << 32, 1 << 63) for position in (0, 1, 1 << 32)}
    assert len(draws) == 12
    assert all(0 < u < 1 for u in draws)
    assert 0 < 0.5 / 2**32 and (2**32 - 0.5) / 2**32 < 1


def exact(logits: np.ndarray, params: SamplingParams) -> np.ndarray:
    """The distribution after every cut, by sorting everything in float64."""
    weights = np.exp((logits.astype(np.float64) - logits.max()) / params.temperature)
    if params.top_k:
        weights[weights < np.sort(weights)[-min(params.top_k, len(weights))]] = 0
    probabilities = weights / weights.sum()
    if params.top_p < 1:
        order = np.argsort(-probabilities)
        reached = np.flatnonzero(np.cumsum(probabilities[order]) >= params.top_p)
        last = order[reached[0] if len(reached) else -1]
        weights[probabilities < probabilities[last]] = 0
    weights[weights < params.min_p * weights.max()] = 0
    return weights / weights.sum()


@pytest.mark.parametrize(
    "options",
    [
        {"temperature": 1.0},
        {"temperature": 0.6},
        {"temperature": 2.5, "top_k": 7},
        {"temperature": 1.0, "top_p": 0.8},
        {"temperature": 1.3, "min_p": 0.1},
        {"temperature": 1.5, "top_k": 12, "top_p": 0.9, "min_p": 0.05},
    ],
)
def test_frequencies_follow_the_exact_distribution(options: dict[str, Any]) -> None:
    params = SamplingParams(seed=1234, **options)
    logits = np.random.default_rng(7).standard_normal(24).astype(np.float32) * 2
    expected = exact(logits, params)
    count = 8_000
    sampler = Sampler()
    drawn = np.bincount(
        [sampler.sample(logits, params, position).token for position in range(count)], minlength=len(logits)
    )
    assert not drawn[expected == 0].any()
    likely = expected * count >= 5
    rest = expected[~likely].sum() * count
    square = ((drawn[likely] - expected[likely] * count) ** 2 / (expected[likely] * count)).sum()
    if rest >= 1:
        square += (drawn[~likely].sum() - rest) ** 2 / rest
    freedom = int(likely.sum())
    # mean + 4 sigma of a chi-square; fixed seeds, so this fails only if the code changes
    assert square < freedom + 4 * math.sqrt(2 * freedom)


@settings(max_examples=200, deadline=None)
@given(
    seed=st.integers(0, 2**32),
    size=st.integers(1, 700),
    temperature=st.floats(0.05, 5),
    top_k=st.integers(0, 40),
    top_p=st.floats(0, 1),
    min_p=st.floats(0, 1),
    u=st.floats(1e-9, 1 - 1e-9),
)
def test_a_drawn_token_is_one_that_the_definition_keeps(
    seed: int, size: int, temperature: float, top_k: int, top_p: float, min_p: float, u: float
) -> None:
    logits = np.random.default_rng(seed).standard_normal(size).astype(np.float32) * 4
    params = SamplingParams(temperature=temperature, top_k=top_k, top_p=top_p, min_p=min_p)
    token = draw(logits, params, u)
    # one float32 rounding of slack at the edges of top-p and min-p
    slack = SamplingParams(
        temperature=temperature, top_k=top_k, top_p=min(1.0, top_p + 1e-5), min_p=max(0.0, min_p * (1 - 1e-4))
    )
    assert exact(logits, slack)[token] > 0


def test_a_flat_nucleus_of_a_large_vocabulary_needs_more_than_the_first_sort() -> None:
    logits = np.zeros(100_000, np.float32)
    logits[:50_000] = 0.5
    params = SamplingParams(temperature=1.0, top_p=0.5)
    tokens = [draw(logits, params, u) for u in (1e-9, 0.25, 0.5, 1 - 1e-9)]
    assert tokens == sorted(tokens) and tokens[0] == 0 and tokens[-1] == 49_999


@pytest.mark.parametrize("zeros", [0.0, 0.5, 0.99])
def test_the_draw_inverts_the_cumulative_sum_of_a_large_vocabulary(zeros: float) -> None:
    random = np.random.default_rng(3)
    logits = np.where(random.random(5000) < zeros, -1e5, random.standard_normal(5000) * 3).astype(np.float32)
    weights = np.exp(logits.astype(np.float64) - logits.max())
    edges = np.concatenate([[0.0], np.cumsum(weights) / weights.sum()])
    for u in random.random(500):
        token = draw(logits, SamplingParams(temperature=1.0), float(u))
        assert edges[token] - 1e-6 <= u <= edges[token + 1] + 1e-6
        assert weights[token] > 0
    for u in (0.5 / 2**32, 1 - 0.5 / 2**32):
        assert weights[draw(logits, SamplingParams(temperature=1.0), u)] > 0


@pytest.mark.parametrize("top_k", [1, 2, 50, 312, 313, 1250])
def test_top_k_keeps_exactly_the_k_best_of_distinct_logits(top_k: int) -> None:
    logits = np.random.default_rng(top_k).permutation(5000).astype(np.float32) / 5000
    params = SamplingParams(temperature=5.0, top_k=top_k)
    drawn = {draw(logits, params, (i + 0.5) / 20_000) for i in range(0, 20_000, max(20, 5_000 // top_k))}
    best = set(np.argsort(-logits)[:top_k].tolist())
    assert drawn <= best
    assert len(drawn) >= min(top_k, 500) * 0.9


def test_ties_at_a_cut_are_all_kept() -> None:
    logits = np.array([1, 3, 3, 3, 0], np.float32)
    for options in ({"top_k": 2}, {"top_p": 0.4}, {"min_p": 1.0}):
        params = SamplingParams(temperature=1.0, **options)  # type: ignore[arg-type]
        assert {draw(logits, params, u) for u in np.linspace(0.01, 0.99, 50)} == {1, 2, 3}


def test_greedy_takes_the_lowest_of_equal_tokens_and_leaves_the_logits_alone() -> None:
    logits = np.array([0, 2, 2, 1], np.float32)
    kept = logits.copy()
    params = SamplingParams(repetition_penalty=1.1, logit_bias=((0, 1.0),))
    assert Sampler().sample(logits, SamplingParams(), 0).token == 1
    Sampler().sample(logits, params, 0)
    assert (logits == kept).all()


def test_a_tiny_temperature_is_greedy_and_a_small_one_does_not_overflow() -> None:
    logits = np.array([-3e38, 5, 3e38], np.float32)
    for temperature in (1e-300, 1e-5, 1e-3):
        assert Sampler().sample(logits, SamplingParams(temperature=temperature, seed=1), 0).token == 2


def test_a_token_depends_on_seed_and_position_only() -> None:
    logits = np.random.default_rng(0).standard_normal(1000).astype(np.float32)
    params = SamplingParams(temperature=2.0, seed=5)
    again = [Sampler().sample(logits, params, position).token for position in range(30)]
    assert again == [Sampler().sample(logits, params, position).token for position in range(30)]
    assert len(set(again)) > 15
    other = SamplingParams(temperature=2.0, seed=6)
    assert again != [Sampler().sample(logits, other, position).token for position in range(30)]


def test_penalties_follow_their_definitions() -> None:
    logits = np.array([4, 3, -1, 0.5, 2], np.float32)
    sampler = Sampler()
    sampler.feed([1, 2])
    # nothing is generated yet: presence and frequency penalties do not touch the prompt
    assert sampler.sample(logits, SamplingParams(presence_penalty=2, frequency_penalty=2), 2).token == 0
    # token 0 was generated once, 4 - 1.5 < 3
    assert sampler.sample(logits, SamplingParams(presence_penalty=1.5), 3).token == 1
    # repetition: 0 and 1 seen in output, 1 and 2 in the prompt: 4/2.5, 3/2.5, -2.5, so token 4 with 2 wins
    assert sampler.sample(logits, SamplingParams(repetition_penalty=2.5), 4).token == 4
    # frequency counts: now 0, 1 and 4 once each: 4-1, 3-1, 2-1, still token 0; then 4-2 = 2 = 3-1: the lower id wins
    frequent = SamplingParams(frequency_penalty=1.0)
    assert [sampler.sample(logits, frequent, position).token for position in (5, 6, 7)] == [0, 0, 1]


def test_repetition_penalty_multiplies_negative_logits() -> None:
    sampler = Sampler()
    sampler.feed([0])
    logits = np.array([-1.0, -1.5], np.float32)
    assert sampler.sample(logits, SamplingParams(), 1).token == 0
    assert sampler.sample(logits, SamplingParams(repetition_penalty=2.0), 2).token == 1


def test_logit_bias_is_added_before_temperature() -> None:
    logits = np.zeros(4, np.float32)
    biased = SamplingParams(temperature=1.0, seed=3, logit_bias=((2, 100.0),))
    assert {Sampler().sample(logits, biased, position).token for position in range(20)} == {2}
    banned = SamplingParams(temperature=1.0, seed=3, logit_bias=((2, -100.0),))
    assert {Sampler().sample(logits, banned, position).token for position in range(60)} == {0, 1, 3}


def test_logprobs_are_those_of_the_raw_logits() -> None:
    logits = np.random.default_rng(2).standard_normal(50).astype(np.float32) * 5
    double = logits.astype(np.float64)
    expected = double - np.log(np.exp(double - double.max()).sum()) - double.max()
    params = SamplingParams(temperature=3.0, seed=4, logprobs=5, logit_bias=((7, 100.0),))
    sampled = Sampler().sample(logits, params, 0)
    assert sampled.token == 7
    assert sampled.logprob == pytest.approx(expected[7], abs=1e-5)
    assert [token for token, _ in sampled.top] == np.argsort(-expected)[:5].tolist()
    assert [value for _, value in sampled.top] == pytest.approx(np.sort(expected)[::-1][:5], abs=1e-5)
    assert Sampler().sample(logits, SamplingParams(), 0).logprob is None


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("params", [SamplingParams(), SamplingParams(temperature=1.0, seed=0)])
def test_logits_that_are_not_finite_are_an_error_and_never_a_token(bad: float, params: SamplingParams) -> None:
    logits = np.ones(100, np.float32)
    logits[42] = bad
    with pytest.raises(EngineError, match=rf"position 9\n.*1 of 100 logits are not finite, first {bad} for token 42"):
        Sampler().sample(logits, params, 9)


def test_an_executor_reports_bad_logits_as_the_error_of_one_sequence() -> None:
    samplers = Samplers()
    good = ScheduledSequence(1, (5, 6), 0, ((0,),), SamplingParams(), 2, "all")
    bad = ScheduledSequence(2, (5, 6), 0, ((1,),), SamplingParams(), 2)
    rows = np.array([[0, 9, 0], [0, 0, 9]], np.float32)
    output = samplers.output(good, rows)
    assert output.sampled == Sampled(2) and output.logits is rows and samplers.token(1) == 2
    failed = samplers.output(bad, np.full((1, 3), np.nan, np.float32))
    assert failed.sampled is None and isinstance(failed.error, EngineError) and samplers.token(2) == 0


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("temperature", math.nan, "expected temperature as a number from 0 to 5\n  found: nan"),
        ("temperature", -0.1, "a number from 0 to 5"),
        ("temperature", True, "temperature as a number from 0 to 5\n  found: True"),
        ("temperature", "hot", "temperature as a number from 0 to 5\n  found: 'hot'"),
        ("top_p", 1.01, "a number from 0 to 1"),
        ("min_p", math.inf, "expected min_p as a number from 0 to 1\n  found: inf"),
        ("top_k", -1, "a whole number from 0 to 2147483647"),
        ("top_k", 1.5, "expected top_k as a whole number from 0 to 2147483647\n  found: 1.5"),
        ("repetition_penalty", 0, "expected repetition_penalty as a number from 0.01 to 100\n  found: 0"),
        ("presence_penalty", 3, "a number from -2 to 2"),
        ("frequency_penalty", -3, "expected frequency_penalty as a number from -2 to 2\n  found: -3"),
        ("seed", -1, "expected seed as a whole number from 0 to 18446744073709551615\n  found: -1"),
        ("seed", 2**64, "a whole number from 0 to 18446744073709551615"),
        ("logprobs", 21, "a whole number from 0 to 20"),
        ("logit_bias", ((-1, 0.0),), "token id -1"),
        ("logit_bias", ((3, math.nan),), "logit_bias of token 3"),
        ("logit_bias", ((3, 101),), "a number from -100 to 100"),
        ("logit_bias", ((0, 0.0),) * 1025, "1025 entries"),
    ],
)
def test_parameters_out_of_range_are_refused_by_name(field: str, value: Any, message: str) -> None:
    with pytest.raises(RecipeError) as refusal:
        SamplingParams(**{field: value})
    assert message in str(refusal.value)


def test_a_bias_beyond_the_vocabulary_is_refused() -> None:
    params = SamplingParams(logit_bias=((31, 1.0),))
    params.check_vocab(32)
    with pytest.raises(RecipeError, match="below 31 in logit_bias\n  found: token id 31"):
        params.check_vocab(31)


def test_a_seed_is_drawn_only_where_one_is_needed() -> None:
    assert SamplingParams().seeded().seed is None
    assert SamplingParams(temperature=1.0, seed=3).seeded().seed == 3
    assert SamplingParams(temperature=1.0).seeded().seed is not None
    with pytest.raises(ValueError, match="needs a seed"):
        Sampler().sample(np.zeros(3, np.float32), SamplingParams(temperature=1.0), 0)


def test_generation_config_gives_the_defaults() -> None:
    config = {"do_sample": True, "temperature": 0.6, "top_p": 0.9, "eos_token_id": [1], "top_k": None}
    assert defaults_of(config) == SamplingParams(temperature=0.6, top_p=0.9)
    assert defaults_of({"do_sample": True}).temperature == 1.0
    assert defaults_of({"temperature": 0.6, "repetition_penalty": 1.1}) == SamplingParams(repetition_penalty=1.1)
    assert defaults_of({}) == SamplingParams()
    wild = {"do_sample": True, "temperature": 100, "repetition_penalty": 1e4}
    assert defaults_of(wild) == SamplingParams(temperature=5.0, repetition_penalty=100.0)
    with pytest.raises(
        EngineError, match="cannot use the generation defaults of the checkpoint\n  found: 'many'; expected top_k as"
    ):
        defaults_of({"do_sample": True, "top_k": "many"})
