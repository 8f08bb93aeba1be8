"""Chooses a token from one row of logits, with the same order, numbers and ties for every executor.

Order: penalties, logit bias, temperature, top-k, top-p, min-p, then one draw. All cuts are thresholds that keep ties
with the last kept token, so no result depends on how a sort breaks ties. The draw inverts the cumulative sum of
the kept weights in ascending token order: the first token whose cumulative weight exceeds u * total, u =
philox.uniform(seed, position). A GPU kernel does the same with per-tile sums and one scan; it can differ only where u
lies within rounding of a boundary.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from ..errors import EngineError
from .params import SamplingParams
from .philox import uniform

_FIRST_NUCLEUS = 256
_TILE = 512


@dataclass(frozen=True, slots=True)
class Sampled:
    """A chosen token; with logprobs also its natural log-probability and the best (id, logprob), best first."""

    token: int
    logprob: float | None = None
    top: tuple[tuple[int, float], ...] = ()


class Sampler:
    """Chooses the tokens of one sequence and stores the tokens that penalties need; not thread-safe."""

    def __init__(self) -> None:
        self._prompt: set[int] = set()
        self._generated: Counter[int] = Counter()
        self.last = 0
        """The token chosen last; 0 before the first."""

    def feed(self, tokens: Sequence[int]) -> None:
        """Add prompt tokens as they are computed; `sample` counts generated tokens itself."""
        self._prompt.update(tokens)

    def count(self, tokens: Sequence[int]) -> None:
        """Add tokens that an earlier sampler of the same sequence chose."""
        self._generated.update(tokens)

    def sample(self, logits: np.ndarray, params: SamplingParams, position: int) -> Sampled:
        """Chooses the token at `position` (index in the sequence) from logits ``f32 [V]``, which stay unchanged.

        Raises:
            EngineError: a logit is NaN or infinite: a broken kernel or weight must never become a random token.
        """
        best = int(logits.argmax())
        highest, lowest = float(logits[best]), float(logits.min())
        if not (math.isfinite(highest) and math.isfinite(lowest)):
            bad = np.flatnonzero(~np.isfinite(logits))
            first = f"first {logits[bad[0]]} for token {bad[0]}"
            raise not_finite(position, f"{len(bad)} of {len(logits)} logits are not finite, {first}")
        token = best
        edited = logits
        if params.edits_logits:
            edited = self.edited(logits, params)
            token = int(edited.argmax())
        if not params.greedy:
            if params.seed is None:
                raise ValueError("sampling needs a seed: SamplingParams.seeded() draws one")
            token = draw(edited, params, uniform(params.seed, position))
        self._generated[token] += 1
        self.last = token
        if not params.logprobs:
            return Sampled(token)
        return logprobs_of(logits, token, params.logprobs)

    def edited(self, logits: np.ndarray, params: SamplingParams) -> np.ndarray:
        """A copy of logits ``f32 [V]`` with penalties, then biases."""
        edited = logits.copy()
        if params.repetition_penalty != 1.0:
            ids = np.array([*self._prompt.union(self._generated)], np.int64)
            values = edited[ids]
            edited[ids] = np.where(values > 0, values / params.repetition_penalty, values * params.repetition_penalty)
        if params.presence_penalty or params.frequency_penalty:
            ids = np.array([*self._generated], np.int64)
            counts = np.array([*self._generated.values()], np.float32)
            edited[ids] -= params.presence_penalty + params.frequency_penalty * counts
        for token, bias in params.logit_bias:
            edited[token] += bias
        return edited


def draw(logits: np.ndarray, params: SamplingParams, u: float) -> int:
    """Applies temperature, top-k, top-p, min-p to finite logits ``f32 [V]``; returns the kept token at u in (0, 1)."""
    ids = None
    if 0 < params.top_k < len(logits):
        ids = np.flatnonzero(logits >= _largest(logits, params.top_k)[-1])
        logits = logits[ids]
    # in place: for 128k tokens an allocation costs more than the arithmetic
    with np.errstate(over="ignore", under="ignore"):
        weights = logits - logits.max()
        weights /= np.float32(params.temperature)
        np.exp(weights, out=weights)
    # the best token's weight is 1, so min_p is itself a threshold on weights
    cut = params.min_p
    if params.top_p < 1.0:
        cut = max(cut, _nucleus_cut(weights, params.top_p * float(weights.sum(dtype=np.float64))))
    if cut > 0.0:
        kept = np.flatnonzero(weights >= np.float32(cut))
        weights = weights[kept]
        ids = kept if ids is None else ids[kept]
    index = _invert(weights, u)
    return index if ids is None else int(ids[index])


def _invert(weights: np.ndarray, u: float) -> int:
    """The first index whose cumulative weight exceeds u * total: sums per tile, then one tile's scan, in float64."""
    starts = np.arange(0, len(weights), _TILE)
    tiles = np.cumsum(np.add.reduceat(weights, starts, dtype=np.float64))
    target = u * tiles[-1]
    tile = int(np.searchsorted(tiles, target, side="right"))
    start = tile * _TILE
    inside = np.cumsum(weights[start : start + _TILE], dtype=np.float64)
    index = np.searchsorted(inside, target - (tiles[tile - 1] if tile else 0.0), side="right")
    # rounding may put the target beyond the tile's end: then take the tile's last nonzero weight
    return start + min(int(index), int(np.searchsorted(inside, inside[-1], side="left")))


def _nucleus_cut(weights: np.ndarray, mass: float) -> float:
    """The smallest weight of the smallest set of largest weights whose sum reaches `mass`.

    It sorts the largest 256 weights, then 16 times as many until their sum is reached.
    """
    size = _FIRST_NUCLEUS
    while True:
        size = min(size, len(weights))
        largest = _largest(weights, size)
        cumulative = np.cumsum(largest, dtype=np.float64)
        if size == len(weights) or cumulative[-1] >= mass:
            return float(largest[min(int(np.searchsorted(cumulative, mass, side="left")), size - 1)])
        size *= 16


def _largest(values: np.ndarray, count: int) -> np.ndarray:
    """The `count` largest values, largest first, without sorting the rest (1 <= count <= len(values))."""
    groups = 4 * count
    width = len(values) // groups
    if width > 1:
        # `count` disjoint groups have a maximum >= the bound, so at least `count` values reach it
        maxima = values[: width * groups].reshape(width, groups).max(axis=0)
        values = values[values >= np.partition(maxima, groups - count)[groups - count]]
    return np.sort(values)[::-1][:count]


def logprobs_of(logits: np.ndarray, token: int, count: int) -> Sampled:
    """The token with its log-probability and the `count` best tokens, from finite logits ``f32 [V]``."""
    highest = float(logits.max())
    with np.errstate(over="ignore", under="ignore"):
        weights = logits - np.float32(highest)
    total = highest + math.log(float(np.exp(weights, out=weights).sum(dtype=np.float64)))
    count = min(count, len(logits))
    best = np.flatnonzero(logits >= _largest(logits, count)[-1])
    best = best[np.argsort(-logits[best], kind="stable")][:count]
    top = tuple((int(i), float(logits[i]) - total) for i in best)
    return Sampled(token, float(logits[token]) - total, top)


def not_finite(position: int, found: str = "logits that are not finite") -> EngineError:
    """The error for a token at `position` whose logits are not finite."""
    return EngineError(
        f"cannot choose the token at position {position}",
        found=found,
        fix="llmc verify ENGINE, to see whether the engine's file or the machine is at fault",
    )
