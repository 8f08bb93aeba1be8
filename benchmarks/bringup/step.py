"""A step of a call, divided into items that are run, recorded and, if necessary, skipped one by one."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from bringup.bench import Bench  # pyright: ignore[reportMissingImports]


@dataclass(frozen=True)
class Item:
    """One measurement or check: `run` gives what is written down, as JSON. limit: seconds after which it hangs."""

    name: str
    run: Callable[[Bench], Mapping[str, Any]]
    limit: float = 20.0


@dataclass(frozen=True)
class Step:
    """Items in order, for at most `seconds` together: what no longer fits is left out by name.

    items: judged without touching the device, so that a process that starts again finds the same ones.
    """

    name: str
    seconds: float
    items: Callable[[Bench], Iterable[Item]]
