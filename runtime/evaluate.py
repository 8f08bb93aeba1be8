"""Perplexity of an engine on a text, and its divergence from a baseline: they measure a loss of accuracy.

Every token of the text is scored exactly once. The text is cut into windows: with a BOS token every window is BOS and
the next `window - 1` tokens, so the first token of a window is predicted from BOS alone; without one, a window begins
with the last token of the window before, and only the text's very first token is never scored.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from .errors import EngineError, RecipeError

Logits = Callable[[list[int]], np.ndarray]
"""Token ids to logits ``f32 [T, V]``, where row t predicts token t + 1."""

_ROWS = 64
_LARGEST_EXPONENT = 700.0
"""A float overflows above e^709."""


@dataclass(frozen=True)
class Evaluation:
    """Scores of a text; the last four need a baseline. A field with a metric's name (`recipes/metrics.py`) is it."""

    tokens: int
    """Tokens scored."""
    ppl: float
    """Perplexity: exp(mean of -ln p(token))."""
    ppl_ratio: float | None = None
    """Perplexity over the baseline's."""
    kl_mean: float | None = None
    """Mean of KL(baseline || engine), in nats."""
    kl_p99: float | None = None
    top1: float | None = None
    """Share of tokens for which both choose the same best token."""


def windows(ids: Sequence[int], window: int, bos: int | None) -> Iterator[list[int]]:
    """Cut one text's ids (without BOS) into windows of at most `window` ids, each scored from its second id on.

    Raises:
        RecipeError: `window` is below 2.
    """
    if window < 2:
        raise RecipeError("expected a window of at least 2 tokens", found=f"{window}")
    step = window - 1
    for start in range(0 if bos is not None else 1, len(ids), step):
        first = bos if bos is not None else ids[start - 1]
        yield [first, *ids[start : start + step]]


def score(
    cut: Iterable[list[int]],
    models: Sequence[Logits],
    baseline: Logits | None = None,
    advance: Callable[[int], None] = lambda tokens: None,
) -> list[Evaluation]:
    """Score windows with each model; `advance` is told the tokens of each window that is done.

    The baseline computes a window once for all models. Memory holds the logits of two models for one window, and two
    floats per token and model.

    Raises:
        RecipeError: there is nothing to score, or the baseline has another vocabulary.
        EngineError: logits are not finite, or their shape does not match the ids.
    """
    tallies = [_Tally() for _ in models]
    expected = _Tally()
    for ids in cut:
        theirs = None if baseline is None else _checked(baseline(ids), ids, "the baseline")[:-1]
        if theirs is not None:
            expected.add(theirs, ids[1:])
        for tally, model in zip(tallies, models, strict=True):
            tally.add(_checked(model(ids), ids, "the engine")[:-1], ids[1:], theirs)
        advance(len(ids) - 1)
    if not any(tally.surprise for tally in tallies):
        raise RecipeError("cannot score the text", found="fewer than 2 tokens")
    return [tally.result(None if baseline is None else expected) for tally in tallies]


class _Tally:
    """What one model has scored so far: a float per token for its surprise, one for its divergence."""

    def __init__(self) -> None:
        self.surprise: list[float] = []
        self.divergence: list[float] = []
        self.agreed = 0

    def add(self, ours: np.ndarray, wanted: Sequence[int], theirs: np.ndarray | None = None) -> None:
        """Score logits ``f32 [T, V]`` for the `wanted` tokens, against a baseline's of the same shape.

        Raises:
            RecipeError: the shapes differ.
        """
        if theirs is not None and theirs.shape != ours.shape:
            raise RecipeError(
                "expected a baseline with the vocabulary of the engine",
                found=f"{theirs.shape[1]} tokens, the engine {ours.shape[1]}",
            )
        for start in range(0, len(wanted), _ROWS):
            rows = slice(start, start + _ROWS)
            log_q = _log_softmax(ours[rows])
            self.surprise.extend(-log_q[np.arange(len(log_q)), np.asarray(wanted[rows])])
            if theirs is not None:
                log_p = _log_softmax(theirs[rows])
                self.divergence.extend(np.sum(np.exp(log_p) * (log_p - log_q), axis=1))
                self.agreed += int(np.sum(np.argmax(log_p, axis=1) == np.argmax(log_q, axis=1)))

    @property
    def mean(self) -> float:
        """Mean of -ln p(token)."""
        return math.fsum(self.surprise) / len(self.surprise)

    def result(self, baseline: _Tally | None) -> Evaluation:
        count = len(self.surprise)
        if baseline is None:
            return Evaluation(count, _exp(self.mean))
        return Evaluation(
            count,
            _exp(self.mean),
            ppl_ratio=_exp(self.mean - baseline.mean),
            kl_mean=math.fsum(self.divergence) / count,
            kl_p99=float(np.quantile(self.divergence, 0.99)),
            top1=self.agreed / count,
        )


def _exp(value: float) -> float:
    return math.exp(min(value, _LARGEST_EXPONENT))


def _checked(logits: np.ndarray, ids: Sequence[int], whose: str) -> np.ndarray:
    if logits.ndim != 2 or len(logits) != len(ids):
        raise EngineError(f"expected {len(ids)} rows of logits from {whose}", found=f"shape {list(logits.shape)}")
    if max(ids) >= logits.shape[1]:
        raise EngineError(
            f"expected a logit of {whose} for token {max(ids)}", found=f"{logits.shape[1]} logits per row"
        )
    if not np.isfinite(logits).all():
        found = f"NaN or infinity in a window of {len(ids)} tokens"
        raise EngineError(f"expected finite logits from {whose}", found=found)
    return logits


def _log_softmax(logits: np.ndarray) -> np.ndarray:
    """ln softmax over the last axis, in float64."""
    wide = logits.astype(np.float64)
    wide -= wide.max(axis=1, keepdims=True)
    return wide - np.log(np.exp(wide).sum(axis=1, keepdims=True))
