"""Measurements beside what was predicted of them before any GPU had run (`gpu_predictions.py`); there is no verdict."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

FILE = Path(__file__).resolve().parent.parent / "predictions.json"
OTHERS = "H100"
"""The chip whose predictions other cards are held against."""


@dataclass(frozen=True)
class Compared:
    """A number of an item's result ("step/item"), by its path in there, and what was predicted."""

    name: str
    field: str
    measured: float
    predicted: float

    @property
    def ratio(self) -> float:
        return self.measured / self.predicted

    def __str__(self) -> str:
        return f"{self.ratio:5.2f}  {self.name}: {self.field} {self.measured:.4g}, predicted {self.predicted:.4g}"


def compared(outcomes: Mapping[str, Any], card: str, file: Path = FILE) -> list[Compared]:
    """Everything that was predicted for a card and has been measured, in the order of the results."""
    chips = json.loads(file.read_text())["chips"]
    known: Mapping[str, Mapping[str, float]] = chips[next((chip for chip in chips if chip in card), OTHERS)]
    return [
        Compared(name, field, float(found), predicted)
        for name, outcome in outcomes.items()
        for field, predicted in known.get(name, {}).items()
        if isinstance(found := _at(outcome.get("result", {}), field), int | float)
    ]


def lines(outcomes: Mapping[str, Any], card: str) -> Iterator[str]:
    """A table of them, for people."""
    rows = compared(outcomes, card)
    if rows:
        yield f"measured over predicted, {card}:"
        yield from map(str, rows)


def _at(value: Any, path: str) -> Any:
    for key in path.split("/"):
        if not isinstance(value, Mapping):
            return None
        value = value.get(key)
    return value
