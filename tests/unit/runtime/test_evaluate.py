"""Evaluation against plain formulas: perplexity and divergence are what users judge an engine by."""

from __future__ import annotations

import math
from dataclasses import fields

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmc.recipes.metrics import METRICS
from llmc.runtime.errors import EngineError, RecipeError
from llmc.runtime.evaluate import Evaluation, TextSize, Window, score, windows

VOCABULARY = 11


def table_model(seed: int, scale: float = 2.0):
    """Logits that depend on the last token and its position only."""
    table = np.random.default_rng(seed).normal(0, scale, (64, VOCABULARY)).astype(np.float32)
    return lambda ids: np.stack([table[(7 * position + token) % 64] for position, token in enumerate(ids)])


def log_softmax(row: np.ndarray) -> np.ndarray:
    row = row.astype(np.float64)
    return row - math.log(np.exp(row).sum())


@given(st.lists(st.integers(0, VOCABULARY - 1), max_size=40), st.integers(2, 9), st.booleans())
def test_every_token_is_scored_once(ids: list[int], window: int, with_bos: bool):
    cut = list(windows(ids, window, VOCABULARY if with_bos else None))
    scored = [token for one in cut for token in one.wanted]
    assert scored == (ids if with_bos else ids[1:])
    assert all(1 <= len(one.ids) == len(one.wanted) < window for one in cut)


def test_windows_without_bos_continue_from_the_token_before():
    assert list(windows([1, 2, 3, 4, 5], 3, None)) == [Window([1, 2], [2, 3]), Window([3, 4], [4, 5])]


def lm_eval_windows(ids: list[int], prefix: int, longest: int) -> list[tuple[list[int], list[int]]]:
    """The inputs and targets of lm-evaluation-harness 0.4.13: `get_rolling_token_windows(context_len=1)` and
    `make_disjoint_window` of lm_eval/utils.py, then `(context + continuation)[-(longest + 1):][:-1]` as
    `_loglikelihood_tokens` of lm_eval/models/huggingface.py feeds it."""
    pairs = [([prefix, *ids[: min(longest, len(ids)) - 1]], ids[:longest])] if ids else []
    done = min(longest, len(ids))
    while done < len(ids):
        count = min(len(ids) - done, longest)
        end = done + count
        pairs.append((ids[end - longest - 1 : end - 1], ids[end - count : end]))
        done += count
    disjoint = [(before[: len(before) - (len(wanted) - 1)], wanted) for before, wanted in pairs]
    return [((before + wanted)[-(longest + 1) :][:-1], wanted) for before, wanted in disjoint]


@given(st.lists(st.integers(0, VOCABULARY - 1), max_size=40), st.integers(2, 45))
def test_rolling_windows_are_those_of_lm_eval(ids: list[int], window: int):
    cut = [(one.ids, one.wanted) for one in windows(ids, window, 7, "rolling")]
    assert cut == lm_eval_windows(ids, 7, window)


def test_figures_of_words_and_bytes_are_those_of_lm_eval():
    """lm-evaluation-harness 0.4.13: `PerplexityTask.count_words` and `count_bytes` of lm_eval/api/task.py over all
    texts, `weighted_perplexity` and `bits_per_byte` of lm_eval/api/metrics.py."""
    texts, ids = ["a b\n", "", "dé  f"], [[1, 2, 3, 4, 5, 6, 7], [], [8, 9]]
    model = table_model(1)
    total = 0.0
    for one in ids:
        for read, wanted in lm_eval_windows(one, 0, 3):
            rows = model(read)[-len(wanted) :]
            total += sum(log_softmax(row)[token] for row, token in zip(rows, wanted, strict=True))
    words, size = 3 + 1 + 2, 4 + 0 + 6
    cut = [window for one in ids for window in windows(one, 3, 0, "rolling")]
    (found,) = score(cut, [model], size=TextSize.of(texts))
    assert TextSize.of(texts) == TextSize(words, size)
    assert found.perplexity == pytest.approx(math.exp(-total / 9), rel=1e-12)
    assert found.word_perplexity == pytest.approx(math.exp(-total / words), rel=1e-12)
    assert found.byte_perplexity == pytest.approx(math.exp(-total / size), rel=1e-12)
    assert found.bits_per_byte == pytest.approx(-total / size / math.log(2), rel=1e-12)


def test_perplexity_and_divergence_are_the_formulas():
    rng = np.random.default_rng(0)
    ids = rng.integers(0, VOCABULARY, 200).tolist()
    model, baseline = table_model(1), table_model(2)
    (result,) = score(windows(ids, 17, 0), [model], baseline)

    surprise, divergence, agreed, theirs = [], [], [], []
    for one in windows(ids, 17, 0):
        for q_row, p_row, token in zip(model(one.ids), baseline(one.ids), one.wanted, strict=True):
            log_q, log_p = log_softmax(q_row), log_softmax(p_row)
            surprise.append(-log_q[token])
            theirs.append(-log_p[token])
            divergence.append(float(sum(np.exp(log_p) * (log_p - log_q))))
            agreed.append(np.argmax(q_row) == np.argmax(p_row))
    assert result.tokens == 200
    assert result.perplexity == pytest.approx(math.exp(np.mean(surprise)))
    assert result.ppl_ratio == pytest.approx(math.exp(np.mean(surprise)) / math.exp(np.mean(theirs)))
    assert result.kl_mean == pytest.approx(np.mean(divergence))
    assert result.kl_p99 == pytest.approx(np.quantile(divergence, 0.99))
    assert result.top1 == pytest.approx(np.mean(agreed))


def test_a_uniform_model_has_the_vocabulary_as_perplexity():
    (result,) = score(windows(list(range(VOCABULARY)), 5, 0), [lambda ids: np.zeros((len(ids), VOCABULARY), "f4")])
    assert result.perplexity == pytest.approx(VOCABULARY)
    assert (result.ppl_ratio, result.kl_mean, result.kl_p99, result.top1) == (None, None, None, None)


def test_a_model_against_itself_has_no_divergence():
    model = table_model(3)
    (result,) = score(windows([1, 2, 3, 4, 5, 6], 4, None), [model], model)
    assert (result.tokens, result.ppl_ratio, result.kl_mean, result.top1) == (5, 1.0, 0.0, 1.0)


def test_several_models_are_scored_as_each_alone_and_the_baseline_runs_once_a_window():
    ids = np.random.default_rng(4).integers(0, VOCABULARY, 50).tolist()
    models, baseline, asked, told = [table_model(1), table_model(2), table_model(3)], table_model(5), [], []

    def counted(window: list[int]) -> np.ndarray:
        asked.append(window)
        return baseline(window)

    together = score(windows(ids, 9, 0), models, counted, told.append)
    assert asked == [one.ids for one in windows(ids, 9, 0)]
    assert told == [len(one) for one in asked]
    assert together == [score(windows(ids, 9, 0), [model], baseline)[0] for model in models]
    assert len({one.kl_mean for one in together}) == 3


def test_a_hopeless_model_has_a_finite_perplexity():
    def wrong(ids: list[int]) -> np.ndarray:
        logits = np.full((len(ids), VOCABULARY), -1e4, np.float32)
        logits[:, 0] = 1e4
        return logits

    assert math.isfinite(score(windows([3, 3, 3], 4, 0), [wrong])[0].perplexity)


def test_refusals_say_what_is_wrong():
    model = table_model(1)
    with pytest.raises(RecipeError, match="cannot score the text"):
        score(windows([5], 4, None), [model])
    with pytest.raises(RecipeError, match="expected a window of at least 2 tokens\n  found: 1"):
        list(windows([1, 2], 1, 0))
    with pytest.raises(EngineError, match="expected finite logits from the engine"):
        score(windows([1, 2], 4, 0), [lambda ids: np.full((len(ids), VOCABULARY), np.nan, "f4")])
    for ids in ([10, 2], [2, 10]):  # read, or only wanted
        with pytest.raises(EngineError, match="expected a logit of the engine for token 10"):
            score(windows(ids, 4, 0), [lambda ids: model(ids)[:, :10]])
    with pytest.raises(
        RecipeError, match="expected a baseline with the vocabulary of the engine\n  found: 10 tokens, the engine 11"
    ):
        score(windows([1, 2], 4, 0), [model], lambda ids: model(ids)[:, :10])


def test_its_fields_are_the_metrics_of_eval():
    named = {name for name, metric in METRICS.items() if metric.command == "eval"}
    assert {field.name for field in fields(Evaluation)} == {"tokens", *named}
    optional = {name for name in named if METRICS[name].compares or METRICS[name].whole}
    assert {field.name for field in fields(Evaluation) if field.default is None} == optional
