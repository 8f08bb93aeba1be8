"""Random conversations on one engine: turns read what earlier ones left in the cache, and their tokens are those of a
sequence that was computed whole."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from support.engines import PicoEngine, some_ids
from support.samples.windowed import FAMILY, FULL, SLIDING, windowed_checkpoint

import llmc
from llmc.compiler.families import FAMILIES
from llmc.runtime.engine import Engine

TOLERANCE = {"none": 1e-4, "int8": 1e-2, "windows": 1e-4, "standard attention": 1e-4}
"""Of logits, relative: a decode step's products add in another order than a prompt's, and int8 rounds the sums."""
WINDOW = 20


@pytest.fixture(scope="module", params=TOLERANCE)
def engine(
    request: pytest.FixtureRequest, pico_engine: PicoEngine, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[Engine, float]]:
    """Of three slots: the bundled checkpoint in two formats; layers with and without windows; other heads."""
    folder = tmp_path_factory.mktemp("reuse")
    heads = {"head_dim": 20, "num_attention_heads": 3, "num_key_value_heads": 1, "hidden_size": 48}
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(FAMILIES, FAMILY.architecture, FAMILY)
        if request.param in ("none", "int8"):
            path = pico_engine(request.param)
        else:
            config = heads if request.param == "standard attention" else {}
            made = windowed_checkpoint(folder / "c", WINDOW, SLIDING, FULL, SLIDING, **config)
            path = llmc.build(made, folder / "e.llmc", targets=["cpu"], quantize="none")
        with llmc.load(path, max_batch=3) as loaded:
            yield loaded, TOLERANCE[request.param]


def check(engine: Engine, tolerance: float, prompt: list[int], tokens: list[int]) -> None:
    """Each token is the best one of logits that are computed from the start, or as good."""
    logits = engine.logits([*prompt, *tokens])[len(prompt) - 1 : -1]
    chosen = logits[np.arange(len(tokens)), tokens]
    assert (logits.max(axis=1) - chosen <= 2 * tolerance * np.abs(logits).max()).all()


TURNS = st.lists(
    st.lists(
        st.tuples(st.integers(0, 3), st.integers(1, 40), st.integers(1, 12), st.sampled_from([0, 0, 0, 1, 3, 30])),
        min_size=1,
        max_size=4,
        unique_by=lambda turn: turn[0],
    ),
    min_size=1,
    max_size=6,
)
"""Of each turn that runs with others: its conversation, new tokens, most tokens of the answer, tokens taken back."""


@settings(max_examples=8, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(turns=TURNS, seed=st.integers(0, 1000))
def test_any_conversations_get_the_tokens_of_sequences_computed_whole(
    engine: tuple[Engine, float], turns: list[list[tuple[int, int, int, int]]], seed: int
):
    loaded, tolerance = engine
    spoken: dict[int, list[int]] = {}
    for together in turns:
        prompts, most = [], []
        for talk, new, answer, back in together:
            before = spoken.get(talk, some_ids(5, seed, 512))
            prompts.append([*before[: max(0, len(before) - back)], *some_ids(new, seed + len(before), 512)])
            most.append(answer)
        streams = [
            loaded.stream(prompt, max_tokens=count, ignore_eos=True)
            for prompt, count in zip(prompts, most, strict=True)
        ]
        results = [stream.result() for stream in streams]
        for (talk, *_), prompt, result in zip(together, prompts, results, strict=True):
            check(loaded, tolerance, prompt, result.token_ids)
            spoken[talk] = [*prompt, *result.token_ids]


def test_a_turn_computes_only_what_is_new(engine: tuple[Engine, float]):
    loaded, tolerance = engine
    prompt, answers = some_ids(70, 5001, 512), []  # no conversation of the test above begins so
    for turn in range(4):
        result = loaded.generate(prompt, max_tokens=9, ignore_eos=True)
        assert result.cached_tokens == (len(prompt) - 5 - 1 if turn else 0), "an answer's last token was not computed"
        answers.append((prompt, result.token_ids))
        prompt = [*prompt, *result.token_ids, *some_ids(5, turn, 512)]
    for answer in answers:
        check(loaded, tolerance, *answer)


def test_the_same_prompt_again_computes_its_last_two_tokens(engine: tuple[Engine, float]):
    """Windows of 20 tokens are cut back by the tokens of the answer, for which their buffers of 40 have room."""
    loaded, _ = engine
    prompt = some_ids(50, 5003, 512)
    first, second = (loaded.generate(prompt, max_tokens=3, ignore_eos=True) for _ in range(2))
    assert (first.cached_tokens, second.cached_tokens) == (0, 48)
    assert first.token_ids == second.token_ids


def test_logits_of_all_positions_are_computed_from_the_start(engine: tuple[Engine, float]):
    loaded, _ = engine
    ids = some_ids(60, 4, 512)
    first, second = loaded.logits(ids), loaded.logits(ids)
    assert first.shape == (60, loaded.vocab_size) and (first == second).all()
