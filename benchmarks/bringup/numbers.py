"""Bytes of a plan's dtypes as numbers, and how far two arrays are apart; without torch."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from llmc.runtime.dtypes import KERNEL_DTYPES
from llmc.runtime.numbers import bf16_to_f32


def numbers(data: np.ndarray, dtype: str, shape: Sequence[int]) -> np.ndarray:
    """u8 bytes as float64 of a shape. Codes and scales of 8 bits are their integers."""
    found = bf16_to_f32(data.view("<u2")) if dtype == "bf16" else data.view(KERNEL_DTYPES[dtype].numpy)
    with np.errstate(invalid="ignore"):  # a NaN that signals
        return found.astype(np.float64).reshape(shape)


def distance(found: np.ndarray, expected: np.ndarray) -> dict[str, Any]:
    """max|a-b| / max|b| over what is not NaN in `expected`, and where it is largest. finite: whether `found` is so."""
    cared = ~np.isnan(expected)
    a, b = found[cared], expected[cared]
    if not a.size:
        return {"error": 0.0, "finite": True}
    finite = np.isfinite(a) | (a == b)
    with np.errstate(invalid="ignore"):
        gaps = np.where(a == b, 0.0, np.where(finite, np.abs(a - b), np.inf))
    worst = int(gaps.argmax())
    place = np.unravel_index(int(np.flatnonzero(cared)[worst]), expected.shape)
    return {
        "error": float(gaps[worst] / max(float(np.abs(b[np.isfinite(b)]).max(initial=0.0)), 1e-30)),
        "finite": bool(finite.all()),
        "at": [int(one) for one in place],
        "found": float(a[worst]),
        "expected": float(b[worst]),
    }
