"""Times as texts, `40ms`: one reader for gates, goals and machines. Sizes are read by `size_bytes` of the runtime."""

from __future__ import annotations

import re

_TIME = re.compile(r"((?:\d+\.?\d*|\.\d+)(?:[eE][-+]?\d+)?) *(us|ms|s|)")
_PER_SECOND = {"us": 1e6, "ms": 1e3, "s": 1.0, "": 1.0}
SHAPE_OF_TIME = "40ms, 200us, 0.2s or 0.2 (seconds)"
"""Times that `seconds_of` reads, for the fix of an error."""


def seconds_of(text: str) -> float | None:
    """Seconds of a time: `200us`, `40ms`, `0.2s`; a plain number is in seconds. None if it is no time."""
    found = _TIME.fullmatch(text)
    return float(found[1]) / _PER_SECOND[found[2]] if found else None


def time_text(seconds: float) -> str:
    """The shortest text that `seconds_of` reads as exactly this time: 0.04 is `40ms`."""
    for unit in ("s", "ms", "us"):
        text = f"{seconds * _PER_SECOND[unit]:.12g}{unit}"
        if "e" not in text and text[:2] != "0." and seconds_of(text) == seconds:
            return text
    return f"{seconds!r}s"
