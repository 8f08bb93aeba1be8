"""Compares the config of an architecture that llmc does not compute with the families that it does: what differs?"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from itertools import takewhile
from typing import Any

from ...runtime.errors import LlmcError
from ..config.foreign import plain
from ..config.keys import COMMON, strange_keys
from .reading import ConfigReader, Family

_SHOWN, _LONGEST = 8, 40
"""Fields that a message lists, and characters of a value."""
_NEEDED = (
    *("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "vocab_size"),
    "max_position_embeddings",
)
"""Fields that every family reads; a family may have a default. What else one needs, its own reading says."""
_SHAPE = frozenset(("hidden_size", "num_hidden_layers", "num_attention_heads"))
"""Without one of these, a config is near no family."""


@dataclass(frozen=True)
class _Kin:
    """A family, and how a config differs from its configs."""

    family: Family
    unknown: Mapping[str, str]
    """Field that the family does not have, to what it turns on ("" if llmc does not know it)."""
    absent: tuple[str, ...]
    wrong: tuple[str, ...]
    """Of values that the family does not compute, what was expected and found."""

    @property
    def distance(self) -> int:
        return len(self.unknown) + len(self.absent) + len(self.wrong)


def nearest_kin(values: Mapping[str, Any], families: Iterable[Family]) -> str:
    """The family whose configs are nearest to this one, and the fields that differ, as part of a message.

    Families that are named after the same word come first: gemma5 is told how it differs from a Gemma. Among them, a
    config is near a family if few fields differ; one that only the family has counts if its absence turns something
    on. Of equal ones, the name that is spelled alike longest counts, then Llama, which the others extend, then the
    family of fewest fields. Equal fields do not make equal models, so nobody is told to put the family's name in place
    of the other.
    """
    names = _names(values)

    def order(kin: _Kin) -> tuple[bool, int, int, bool, int]:
        own = kin.family
        kindred = any(_kindred(own.name, name) for name in names)
        lacking = [key for key in own.defaults.keys() - COMMON - values.keys() if own.defaults[key] is not None]
        alike = max((_alike(plain(own.name), name) for name in names), default=0)
        return not kindred, kin.distance + len(lacking), -alike, own.name != "llama", len(own.defaults)

    kin = min((_compare(values, family) for family in families), key=order)
    if not _SHAPE.isdisjoint(kin.absent):
        return f"near none of them, as its config has no {', '.join(kin.absent)}"
    nearest = kin.family.architecture
    if not kin.distance:
        return (
            f"nearest to {nearest}, with the same fields; what differs is in its code, which config.json does not show"
        )
    keys = list(kin.unknown)
    shown = [f"{key} = {_short(values[key])}{_means(kin.unknown[key])}" for key in keys[:_SHOWN]]
    more = f" and {len(keys) - _SHOWN} more" if len(keys) > _SHOWN else ""
    lines = [f"{nearest} has no field {', '.join(shown)}{more}"] if keys else []
    lines += [f"{nearest} needs {', '.join(kin.absent)}, absent here"] if kin.absent else []
    return f"nearest to {nearest}; fields that differ:\n    " + "\n    ".join([*lines, *kin.wrong])


def _names(values: Mapping[str, Any]) -> list[str]:
    """What the config calls itself: its `model_type`, and its architecture without the task."""
    named = [values.get("model_type"), *(values.get("architectures") or [])]
    return [plain(one) for one in named if isinstance(one, str) and one]


def _alike(one: str, other: str) -> int:
    """Characters with which both begin; one is chance."""
    same = len([*takewhile(lambda pair: pair[0] == pair[1], zip(one, other, strict=False))])
    return same if same > 1 else 0


def _kindred(family: str, name: str) -> bool:
    """Whether a name begins with the word of a family: olmoe and olmohybrid with that of olmo2."""
    return name.startswith(re.split(r"[\d_]", family)[0])


def _compare(values: Mapping[str, Any], family: Family) -> _Kin:
    needed = (*_NEEDED, family.epsilon)
    absent = tuple(key for key in needed if values.get(key) is None and family.defaults.get(key) is None)
    wrong: dict[str, None] = {}
    reading = ConfigReader(values, family, "config.json")
    for read in () if absent else (reading.rope, lambda: reading.decoder(family)):
        try:
            read()
        except LlmcError as error:
            wrong[f"{error.asked}, found {error.found}"] = None
    return _Kin(family, strange_keys(values, family.keys), absent, tuple(wrong))


def _short(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= _LONGEST else f"{text[: _LONGEST - 4]} ..."


def _means(reason: str) -> str:
    return f" ({reason})" if reason else ""
