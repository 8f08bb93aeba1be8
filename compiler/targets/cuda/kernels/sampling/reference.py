"""What the sampling kernels must give, in numpy: statistics of tiles and groups, and the best logits of a row."""

from __future__ import annotations

import numpy as np
import torch

from ......runtime.sampling.params import MAX_LOGPROBS
from .candidates import GROUP


def statistics(
    raw: np.ndarray, edited: np.ndarray, temperature: np.ndarray, logprobs: np.ndarray, tile: int
) -> dict[str, torch.Tensor]:
    """The fields of `TileStats` of logits f32 [rows, V] before and after edits, in tiles of `tile` logits; NaN where
    any value is right. temperature and logprobs [rows]."""
    finite, raw_finite = (_tiles(np.where(np.isfinite(one), one, -np.inf), tile, -np.inf) for one in (edited, raw))
    starts = np.arange(finite.shape[1]) * tile
    with np.errstate(divide="ignore"):
        sharpness = np.where(temperature > 0, 1 / temperature.astype(np.float64), np.nan)
    made = {
        "highest": finite.max(2),
        "best": (starts + finite.argmax(2)).astype(np.int32),
        "broken": _tiles(~np.isfinite(raw), tile, 0).sum(2),
        "sums": _sums(finite, sharpness),
        "peaks": np.where(temperature[:, None] > 0, _peaks(finite), np.nan),
    }
    asked = np.where(logprobs > 0, 1.0, np.nan)
    made |= {
        "raw_highest": raw_finite.max(2) * asked[:, None],
        "raw_sums": _sums(raw_finite, asked),
        "raw_peaks": np.where(logprobs[:, None] > 0, _peaks(raw_finite), np.nan),
    }
    return {
        name: torch.from_numpy(np.asarray(one, np.int32 if name in ("best", "broken") else np.float32))
        for name, one in made.items()
    }


def _tiles(row: np.ndarray, tile: int, rest: float) -> np.ndarray:
    """Numbers [rows, V] as f32 [rows, tiles, tile], `rest` behind the vocabulary."""
    rows, vocab = row.shape
    padded = np.full((rows, -(-vocab // tile) * tile), rest, np.float32)
    padded[:, :vocab] = row
    return padded.reshape(rows, -1, tile)


def _sums(tiles: np.ndarray, sharpness: np.ndarray) -> np.ndarray:
    return np.exp((tiles - tiles.max(2, keepdims=True)).astype(np.float64) * sharpness[:, None, None]).sum(2)


def _peaks(tiles: np.ndarray) -> np.ndarray:
    return np.maximum(tiles.reshape(len(tiles), -1, GROUP).max(2), np.finfo(np.float32).min)


def best_of(logits: np.ndarray, token: int, count: int) -> dict[str, np.ndarray]:
    """What `choose` stores of a row for log-probabilities; NaN: not written."""
    found = {"top_ids": np.full(MAX_LOGPROBS, np.nan), "top_logits": np.full(MAX_LOGPROBS, np.nan)}
    found["summary"] = np.full(3, np.nan)
    if count:
        best = sorted(range(len(logits)), key=lambda i: (-logits[i], i))[:count]
        least = logits[best[-1]]
        best.sort(key=lambda i: (logits[i] == least, i))
        found["top_ids"][:count], found["top_logits"][:count] = best, logits[best]
        top = float(logits.max())
        found["summary"][:] = top, np.exp(logits.astype(np.float64) - top).sum(), logits[token]
    return found
