"""Typed, ranged access to JSON that strangers wrote: so that each refusal names file, key, expected and found."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from typing import Any, TypeVar

from ...runtime.errors import CheckpointError

D = TypeVar("D")


def shown(value: Any) -> str:
    """A JSON value as it may stand in a message: short, on one line."""
    text = json.dumps(value, ensure_ascii=True)
    return text if len(text) <= 80 else f"{text[:60]}... ({len(text)} characters)"


class Fields:
    """Reads one JSON object; null counts as absent, true and false are never numbers.

    Every method raises CheckpointError that names `what`, the key, what was expected and what was found.
    """

    def __init__(self, values: Mapping[str, Any], what: str) -> None:
        self.values, self.what = values, what

    def has(self, key: str) -> bool:
        return self.values.get(key) is not None

    def refuse(self, key: str, expected: str, *, fix: str = "") -> CheckpointError:
        found = shown(self.values[key]) if key in self.values else "no such key"
        return CheckpointError(f'{self.what}: "{key}" as {expected}', found=found, fix=fix)

    def integer(self, key: str, low: int, high: int, default: D = None) -> int | D:
        """An integer in [low, high]; 4096.0 is none."""
        value = self.values.get(key)
        if value is None:
            return default
        if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
            raise self.refuse(key, f"an integer from {low} to {high}")
        return value

    def need_integer(self, key: str, low: int, high: int) -> int:
        value = self.integer(key, low, high)
        if value is None:
            raise self.refuse(key, f"an integer from {low} to {high}")
        return value

    def number(self, key: str, low: float, high: float, default: D = None, *, open_low: bool = False) -> float | D:
        """A finite number in [low, high], or (low, high] with open_low."""
        value = self.values.get(key)
        if value is None:
            return default
        if not is_number(value, low, high, open_low=open_low):
            raise self.refuse(
                key, f"a number {'over' if open_low else 'from'} {low:g} {'and up ' * open_low}to {high:g}"
            )
        return float(value)

    def need_number(self, key: str, low: float, high: float, *, open_low: bool = False) -> float:
        value = self.number(key, low, high, open_low=open_low)
        if value is None:
            raise self.refuse(key, f"a number {'over' if open_low else 'from'} {low:g}")
        return value

    def flag(self, key: str, default: bool) -> bool:
        value = self.values.get(key)
        if value is None:
            return default
        if not isinstance(value, bool):
            raise self.refuse(key, "true or false")
        return value

    def text(self, key: str, default: str) -> str:
        value = self.values.get(key)
        if value is None:
            return default
        if not isinstance(value, str):
            raise self.refuse(key, "a string")
        return value

    def table(self, key: str) -> Mapping[str, Any] | None:
        """A JSON object; None if absent or empty."""
        value = self.values.get(key)
        if value is None:
            return None
        if not isinstance(value, dict):
            raise self.refuse(key, "an object")
        return value or None

    def ids(self, key: str, vocab_size: int) -> tuple[int, ...]:
        """Token ids, written as one integer or a list; -1 is an old way to say none. Sorted, without repeats."""
        value = self.values.get(key)
        entries = value if isinstance(value, list) else [] if value is None else [value]
        whole = all(isinstance(entry, int) and not isinstance(entry, bool) for entry in entries)
        if not whole or any(not -1 <= entry < vocab_size for entry in entries):
            raise self.refuse(key, f"token ids below the vocabulary's {vocab_size} (one, a list, or null)")
        return tuple(sorted({entry for entry in entries if entry >= 0}))


def is_number(value: Any, low: float, high: float, *, open_low: bool = False) -> bool:
    """Whether a JSON value is a finite number in [low, high], or in (low, high] with open_low."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not low <= value <= high:
        return False
    return math.isfinite(value) and not (open_low and value == low)
