"""Compares the config of an architecture that llmc does not compute with the families that it does: what differs?"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from ...runtime.errors import LlmcError
from ..config.keys import strange_keys
from .reading import ConfigReader, Family

_SHOWN, _LONGEST = 8, 40
"""Fields that a message lists, and characters of a value."""
_NEEDED = (
    *("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "vocab_size"),
    "max_position_embeddings",
)
"""Fields that every family reads beside that of the norms' epsilon; a family may have a default."""
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

    A config is near a family if few of its fields differ; of equal ones, that with more of the family's own fields
    counts. Equal fields do not make equal models, so nobody is told to put the family's name in place of the other.
    """
    named = values.get("model_type")

    def order(kin: _Kin) -> tuple[int, bool, int]:
        kindred = isinstance(named, str) and named.startswith(kin.family.name)
        return kin.distance, not kindred, -len(kin.family.defaults.keys() & values.keys())

    kin = min((_compare(values, family) for family in families), key=order)
    if not _SHAPE.isdisjoint(kin.absent):
        return f"near none of them, as its config has no {', '.join(kin.absent)}"
    name = kin.family.architecture
    if not kin.distance:
        return f"nearest to {name}, with the same fields; what differs is in its code, which config.json does not show"
    keys = list(kin.unknown)
    shown = [f"{key} = {_short(values[key])}{_means(kin.unknown[key])}" for key in keys[:_SHOWN]]
    more = f" and {len(keys) - _SHOWN} more" if len(keys) > _SHOWN else ""
    lines = [f"{name} has no field {', '.join(shown)}{more}"] if keys else []
    lines += [f"{name} needs {', '.join(kin.absent)}, absent here"] if kin.absent else []
    return f"nearest to {name}; fields that differ:\n    " + "\n    ".join([*lines, *kin.wrong])


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
    return _Kin(family, strange_keys(values, family.defaults), absent, tuple(wrong))


def _short(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= _LONGEST else f"{text[: _LONGEST - 4]} ..."


def _means(reason: str) -> str:
    return f" ({reason})" if reason else ""
