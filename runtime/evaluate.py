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


@dataclass(frozen=True)
class Evaluation:
    """Scores of a text; the last three need a baseline."""

    tokens: int
    """Tokens scored."""
    perplexity: float
    """exp(mean of -ln p(token))."""
    kl_mean: float | None = None
    """Mean of KL(baseline || engine), in nats."""
    kl_p99: float | None = None
    top1_agreement: float | None = None
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


def score(cut: Iterable[list[int]], model: Logits, baseline: Logits | None = None) -> Evaluation:
    """Score windows; memory holds the logits of one window, and one float per token for the percentile.

    Raises:
        RecipeError: there is nothing to score, or the baseline has another vocabulary.
        EngineError: logits are not finite, or their shape does not match the ids.
    """
    surprise: list[float] = []
    divergence: list[float] = []
    agreed = 0
    for ids in cut:
        wanted = np.asarray(ids[1:])
        ours = _checked(model(ids), ids, "the engine")[:-1]
        theirs = None if baseline is None else _checked(baseline(ids), ids, "the baseline")[:-1]
        if theirs is not None and theirs.shape != ours.shape:
            raise RecipeError(
                "expected a baseline with the vocabulary of the engine",
                found=f"{theirs.shape[1]} tokens, the engine {ours.shape[1]}",
            )
        for start in range(0, len(wanted), _ROWS):
            rows = slice(start, start + _ROWS)
            log_q = _log_softmax(ours[rows])
            surprise.extend(-log_q[np.arange(len(log_q)), wanted[rows]])
            if theirs is not None:
                log_p = _log_softmax(theirs[rows])
                divergence.extend(np.sum(np.exp(log_p) * (log_p - log_q), axis=1))
                agreed += int(np.sum(np.argmax(log_p, axis=1) == np.argmax(log_q, axis=1)))
    if not surprise:
        raise RecipeError("cannot score the text", found="fewer than 2 tokens")
    count = len(surprise)
    perplexity = math.exp(min(math.fsum(surprise) / count, 700.0))  # a float overflows above e^709
    if baseline is None:
        return Evaluation(count, perplexity)
    return Evaluation(
        count,
        perplexity,
        kl_mean=math.fsum(divergence) / count,
        kl_p99=float(np.quantile(divergence, 0.99)),
        top1_agreement=agreed / count,
    )


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
