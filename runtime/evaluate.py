"""Perplexity of an engine on a text, and its divergence from a baseline: they measure a loss of accuracy.

Every token of the text is scored exactly once, in windows. `separate` windows of N are BOS and the next N - 1 tokens,
so the first token of a window is predicted from BOS alone; without a BOS, a window begins with the last token of the
window before, and only the text's very first token is never scored. `rolling` windows are lm-evaluation-harness's: they
read N tokens and predict N, from one token of context at least; the last one reads as much of the text as fits.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np

from .errors import EngineError, RecipeError

Logits = Callable[[list[int]], np.ndarray]
"""Token ids to logits ``f32 [T, V]``, where row t predicts token t + 1."""

Windows = Literal["separate", "rolling"]
"""How a text is cut; `windows` has the rules."""
_ROWS = 64
_LARGEST_EXPONENT = 700.0
"""A float overflows above e^709."""


@dataclass(frozen=True)
class Evaluation:
    """Scores of a text: four need a baseline, three a text's size. A field with a metric's name
    (`recipes/metrics.py`) is it."""

    tokens: int
    """Tokens scored."""
    perplexity: float
    """Perplexity: exp(mean of -ln p(token))."""
    ppl_ratio: float | None = None
    """Perplexity over the baseline's."""
    kl_mean: float | None = None
    """Mean of KL(baseline || engine), in nats."""
    kl_p99: float | None = None
    top1: float | None = None
    """Share of tokens for which both choose the same best token."""
    word_perplexity: float | None = None
    byte_perplexity: float | None = None
    bits_per_byte: float | None = None


@dataclass(frozen=True)
class TextSize:
    """What lm-evaluation-harness 0.4.13 divides a text's log-probability by (`lm_eval/api/task.py`)."""

    words: int
    bytes: int

    @staticmethod
    def of(texts: Iterable[str]) -> TextSize:
        """Words are what blanks separate, an empty one at an end too; bytes are those of UTF-8."""
        sizes = [(len(re.split(r"\s+", text)), len(text.encode())) for text in texts]
        return TextSize(sum(words for words, _ in sizes), sum(length for _, length in sizes))


@dataclass(frozen=True)
class Window:
    """The ids that a model reads, and the tokens that the last rows of its logits must predict."""

    ids: list[int]
    wanted: list[int]


def windows(ids: Sequence[int], size: int, first: int | None, how: Windows = "separate") -> Iterator[Window]:
    """Cut one text's ids (without BOS); `first` is read before the text, BOS as a rule.

    Raises:
        RecipeError: `size` is below 2.
    """
    if size < 2:
        raise RecipeError("expected a window of at least 2 tokens", found=f"{size}")
    text = [*(() if first is None else (first,)), *ids]
    step = size if how == "rolling" else size - 1
    for start in range(1, len(text), step):
        wanted = text[start : start + step]
        if how == "rolling":
            end = start + len(wanted) - 1
            yield Window(text[max(0, end - size) : end], wanted)
        else:
            before = text[start - 1] if first is None else first
            yield Window([before, *wanted[:-1]], wanted)


def score(
    cut: Iterable[Window],
    models: Sequence[Logits],
    baseline: Logits | None = None,
    advance: Callable[[int], None] = lambda tokens: None,
    size: TextSize | None = None,
) -> list[Evaluation]:
    """Score windows with each model; `advance` is told the tokens of each window that is done, `size` is that of the
    texts which the windows cover.

    The baseline computes a window once for all models. Memory holds the logits of two models for one window, and two
    floats per token and model.

    Raises:
        RecipeError: there is nothing to score, or the baseline has another vocabulary.
        EngineError: logits are not finite, or their shape does not match the ids.
    """
    tallies = [_Tally() for _ in models]
    expected = _Tally()
    for one in cut:
        theirs = None if baseline is None else _rows(baseline, one, "the baseline")
        if theirs is not None:
            expected.add(theirs, one.wanted)
        for tally, model in zip(tallies, models, strict=True):
            tally.add(_rows(model, one, "the engine"), one.wanted, theirs)
        advance(len(one.wanted))
    if not any(tally.surprise for tally in tallies):
        raise RecipeError("cannot score the text", found="fewer than 2 tokens")
    return [tally.result(None if baseline is None else expected, size) for tally in tallies]


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
    def total(self) -> float:
        """Sum of -ln p(token)."""
        return math.fsum(self.surprise)

    def result(self, baseline: _Tally | None, size: TextSize | None) -> Evaluation:
        count = len(self.surprise)
        found = Evaluation(count, _exp(self.total / count))
        if size is not None:
            per_byte = self.total / size.bytes
            found = replace(
                found,
                word_perplexity=_exp(self.total / size.words),
                byte_perplexity=_exp(per_byte),
                bits_per_byte=per_byte / math.log(2),
            )
        if baseline is None:
            return found
        return replace(
            found,
            ppl_ratio=_exp((self.total - baseline.total) / count),
            kl_mean=math.fsum(self.divergence) / count,
            kl_p99=float(np.quantile(self.divergence, 0.99)),
            top1=self.agreed / count,
        )


def _exp(value: float) -> float:
    return math.exp(min(value, _LARGEST_EXPONENT))


def _rows(model: Logits, window: Window, whose: str) -> np.ndarray:
    """The rows of logits that predict what is wanted, checked."""
    ids, logits = window.ids, model(window.ids)
    if logits.ndim != 2 or len(logits) != len(ids):
        raise EngineError(f"expected {len(ids)} rows of logits from {whose}", found=f"shape {list(logits.shape)}")
    highest = max(*ids, *window.wanted)
    if highest >= logits.shape[1]:
        raise EngineError(f"expected a logit of {whose} for token {highest}", found=f"{logits.shape[1]} logits per row")
    if not np.isfinite(logits).all():
        found = f"NaN or infinity in a window of {len(ids)} tokens"
        raise EngineError(f"expected finite logits from {whose}", found=found)
    return logits[-len(window.wanted) :]


def _log_softmax(logits: np.ndarray) -> np.ndarray:
    """ln softmax over the last axis, in float64."""
    wide = logits.astype(np.float64)
    wide -= wide.max(axis=1, keepdims=True)
    return wide - np.log(np.exp(wide).sum(axis=1, keepdims=True))
