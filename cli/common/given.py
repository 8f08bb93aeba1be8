"""Refuses what a parser takes without a word: a flag twice, of which the last would count, no value, a giant number."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from ...runtime.errors import RecipeError, shown

_MAY_BE_EMPTY = frozenset(("prompt", "system"))
"""Texts for a model; every other value names something, and an empty path would be the current folder."""
_BITS = 64
"""Of the largest whole number that any flag has, a seed. Arithmetic and printing fail at 309 and at 4300 digits."""


def check(parameters: Sequence[Any], order: Sequence[Any], values: Mapping[str, Any]) -> None:
    """Check a command line as it was parsed: its parameters in the order given, and their values.

    Raises:
        RecipeError: a flag that takes one value has several, or a value is empty.
    """
    if "help" in values:
        return
    times = Counter(one.name for one in order)
    for one in parameters:
        option = one.param_type_name == "option"
        name = max(one.opts, key=len) if option else (one.metavar or one.name.upper()).strip("[].")
        if option and times[one.name] > 1 and not (one.multiple or one.is_flag):
            fix = f"{name} with commas between the values" if one.metavar == "LIST" else f"one {name}"
            raise RecipeError(f"expected {name} once", found=f"{times[one.name]} of them", fix=fix)
        value = values.get(one.name)
        if one.name not in _MAY_BE_EMPTY and "" in (value if isinstance(value, (list, tuple)) else [value]):
            raise RecipeError(f"expected {name} with a value", found="an empty text, as of a variable that is not set")


def check_numbers(values: Mapping[str, Any]) -> None:
    """Check the typed values of a command line.

    Raises:
        RecipeError: one is a whole number that no flag has.
    """
    for name, value in values.items():
        if isinstance(value, int) and value.bit_length() > _BITS:
            raise RecipeError(f"expected --{name.replace('_', '-')} below 2^{_BITS}", found=shown(value))
