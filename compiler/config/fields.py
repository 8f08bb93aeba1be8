"""Typed, range-checked access to untrusted JSON; each error names file, key, expected and found value."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

from ...runtime.errors import CheckpointError
from ...runtime.files.strict_json import loads

D = TypeVar("D")
MAX_ID = 2**31 - 1
NEEDED: Any = object()
"""The default of a required key."""


def shown(value: Any) -> str:
    """A JSON value for a message: short, on one line."""
    text = json.dumps(value, ensure_ascii=True)
    return text if len(text) <= 80 else f"{text[:60]}... ({len(text)} characters)"


def load_object(data: bytes | str, what: str) -> dict[str, Any]:
    """Read a JSON document that must be an object; `what` names it in errors.

    Raises:
        CheckpointError: it is not well-formed JSON, or not an object.
    """
    found = loads(data, what=what, error=CheckpointError)
    if not isinstance(found, dict):
        raise CheckpointError(f"expected a JSON object in {what}", found=shown(found))
    return found


class Fields:
    """Reads the values of one JSON object; null counts as absent, true and false are never numbers.

    Every method that returns a value raises CheckpointError, which names the key, `what` (the file or the object), the
    expected and the found value.
    """

    def __init__(self, values: Mapping[str, Any], what: str) -> None:
        self.values, self.what = values, what

    def has(self, key: str) -> bool:
        return self.values.get(key) is not None

    def refuse(self, key: str, expected: str, *, fix: str = "") -> CheckpointError:
        """The error for a key with a wrong value; the caller raises it."""
        found = shown(self.values[key]) if key in self.values else "no such key"
        return CheckpointError(f'expected "{key}" as {expected} in {self.what}', found=found, fix=fix)

    def integer(self, key: str, low: int, high: int, default: D = None) -> int | D:
        """An integer in [low, high]; a float such as 4096.0 is refused."""
        return self._value(key, default, lambda value: is_int(value, low, high), f"an integer from {low} to {high}")

    def need_integer(self, key: str, low: int, high: int) -> int:
        return self.integer(key, low, high, NEEDED)

    def number(self, key: str, low: float, high: float, default: D = None, *, open_low: bool = False) -> float | D:
        """A finite number in [low, high], or (low, high] with open_low."""
        expected = f"a number {'over' if open_low else 'from'} {low:g} {'and up ' * open_low}to {high:g}"
        value = self._value(key, default, lambda value: is_number(value, low, high, open_low=open_low), expected)
        return value if value is default else float(value)

    def need_number(self, key: str, low: float, high: float, *, open_low: bool = False) -> float:
        return self.number(key, low, high, NEEDED, open_low=open_low)

    def flag(self, key: str, default: bool) -> bool:
        return self._value(key, default, lambda value: isinstance(value, bool), "true or false")

    def text(self, key: str, default: str) -> str:
        return self._value(key, default, lambda value: isinstance(value, str), "a string")

    def table(self, key: str) -> Mapping[str, Any] | None:
        """A JSON object; None if absent or empty."""
        return self._value(key, None, lambda value: isinstance(value, dict), "an object") or None

    def ids(self, key: str) -> tuple[int, ...]:
        """Token ids from one integer or a list, sorted, without repeats; -1 is an old spelling of none.

        Whether the vocabulary has them is decided where all files are known (`compiler/tokens`)."""
        value = self.values.get(key)
        entries = value if isinstance(value, list) else [] if value is None else [value]
        if not all(is_int(entry, -1, MAX_ID) for entry in entries):
            raise self.refuse(key, "token ids (one, a list, or null)")
        return tuple(sorted({entry for entry in entries if entry >= 0}))

    def one_id(self, key: str) -> int | None:
        found = self.ids(key)
        if len(found) > 1:
            raise self.refuse(key, "at most one token id")
        return found[0] if found else None

    def _value(self, key: str, default: Any, fits: Callable[[Any], bool], expected: str) -> Any:
        """The value of a key if it `fits`; the default if the key is absent, unless the default is NEEDED."""
        value = self.values.get(key)
        if value is None and default is not NEEDED:
            return default
        if not fits(value):
            raise self.refuse(key, expected)
        return value


def is_int(value: Any, low: int, high: int) -> bool:
    """True if a JSON value is an integer in [low, high]; true and 4096.0 are not integers."""
    return isinstance(value, int) and not isinstance(value, bool) and low <= value <= high


def is_number(value: Any, low: float, high: float, *, open_low: bool = False) -> bool:
    """True if a JSON value is a finite number in [low, high], or in (low, high] with open_low."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not low <= value <= high:
        return False
    return math.isfinite(value) and not (open_low and value == low)
