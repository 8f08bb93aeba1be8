"""How well an engine predicts a text, and how far it is from a baseline: so that a loss of accuracy is a number.

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
"""Token ids to logits [T,V] float32, row t predicting token t + 1."""

_ROWS = 64


@dataclass(frozen=True)
class Evaluation:
    """`tokens` scored; perplexity = exp(mean of -ln p(token)); against a baseline, KL(baseline || engine) in nats."""

    tokens: int
    perplexity: float
    kl_mean: float | None = None
    kl_p99: float | None = None
    top1_agreement: float | None = None


def windows(ids: Sequence[int], window: int, bos: int | None) -> Iterator[list[int]]:
    """Cut one text's ids (without BOS) into windows of at most `window` ids (at least 2), each to be scored from its
    second id on."""
    if window < 2:
        raise RecipeError(f"a window of {window} tokens predicts nothing", fix="a window of 2 tokens or more")
    step = window - 1
    for start in range(0 if bos is not None else 1, len(ids), step):
        first = bos if bos is not None else ids[start - 1]
        yield [first, *ids[start : start + step]]


def score(cut: Iterable[list[int]], model: Logits, baseline: Logits | None = None) -> Evaluation:
    """Score windows; memory holds the logits of one window, and one float per token for the percentile.

    Raises RecipeError if there is nothing to score, EngineError for logits that are not finite or do not fit.
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
                "the baseline has another vocabulary", found=f"{theirs.shape[1]} tokens, the engine {ours.shape[1]}"
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
        raise RecipeError("there is nothing to score", found="a text of fewer than 2 tokens")
    count = len(surprise)
    perplexity = math.exp(min(math.fsum(surprise) / count, 700.0))  # e^700 is the last that a float can hold
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
        raise EngineError(f"{whose} gave logits {list(logits.shape)}", found=f"{len(ids)} tokens of input")
    if max(ids) >= logits.shape[1]:
        raise EngineError(f"{whose} has no logit for token {max(ids)}", found=f"{logits.shape[1]} logits a row")
    if not np.isfinite(logits).all():
        raise EngineError(f"{whose} gave logits that are not finite", found=f"in a window of {len(ids)} tokens")
    return logits


def _log_softmax(logits: np.ndarray) -> np.ndarray:
    """ln softmax over the last axis, in float64."""
    wide = logits.astype(np.float64)
    wide -= wide.max(axis=1, keepdims=True)
    return wide - np.log(np.exp(wide).sum(axis=1, keepdims=True))
