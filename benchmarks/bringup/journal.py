"""Writes a call's results to disk after every item, so that a crash, a hang or a kill loses none.

`CALL.jsonl` gets a line before and after each item. `CALL.json` is the same as one value, replaced as a whole. A
process that starts again reads the lines and goes on; the process that supervises reads them while they are written.
"""

from __future__ import annotations

import json
import math
import os
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Begun:
    """An item under way: since when (on the machine's monotonic clock), and seconds after which it hangs."""

    name: str
    at: float
    limit: float


@dataclass
class Journal:
    """Outcomes by "step/item", in order. One process writes at a time.

    An outcome has `seconds` and `rung`, and one of `result`, `error` and `left out` (both say why). head: what holds
    for all of them, such as the card. began: when the first item of a step began.
    """

    folder: Path
    call: str
    head: dict[str, Any] = field(default_factory=dict)
    outcomes: dict[str, dict[str, Any]] = field(default_factory=dict)
    began: dict[str, float] = field(default_factory=dict)
    under_way: Begun | None = None
    _read: int = 0

    @staticmethod
    def fresh(folder: Path, call: str) -> Journal:
        """An empty one; what an earlier call left is gone."""
        folder.mkdir(parents=True, exist_ok=True)
        made = Journal(folder, call)
        made.lines.write_text("")
        made._replace()
        return made

    @staticmethod
    def reopened(folder: Path, call: str) -> Journal:
        """What is there so far."""
        made = Journal(folder, call)
        made.refresh()
        return made

    @property
    def lines(self) -> Path:
        return self.folder / f"{self.call}.jsonl"

    @property
    def ok(self) -> bool:
        """True if no result so far is wrong."""
        return all(right(outcome) for outcome in self.outcomes.values())

    def note(self, **facts: Any) -> None:
        """Keep facts for all results."""
        self._write({"head": facts})
        self._replace()

    def begin(self, name: str, limit: float) -> None:
        line = {"begin": name, "at": time.monotonic(), "limit": limit}
        self._write(line, synced=False)  # for processes of this machine, which need it only while they live

    def end(self, name: str, outcome: Mapping[str, Any]) -> None:
        self._write({"end": name, "outcome": outcome})
        self._replace()

    def refresh(self) -> None:
        """Read what another process has written since; a line without its end is not read yet."""
        with open(self.lines, "rb") as file:
            file.seek(self._read)
            data = file.read()
        whole = data[: data.rfind(b"\n") + 1]
        self._read += len(whole)
        for line in whole.splitlines():
            try:
                self._take(json.loads(line))
            except ValueError:  # one that was begun and not ended
                continue

    def _write(self, line: Mapping[str, Any], *, synced: bool = True) -> None:
        self.refresh()
        with open(self.lines, "ab") as file:
            if file.tell() > self._read:  # the end of a line that a killed process began
                file.write(b"\n")
            file.write(json.dumps(_plain(line)).encode() + b"\n")
            file.flush()
            if synced:
                os.fsync(file.fileno())
        self.refresh()

    def _take(self, line: Mapping[str, Any]) -> None:
        self.head |= line.get("head", {})
        if "begin" in line:
            self.under_way = Begun(line["begin"], line["at"], line["limit"])
            self.began.setdefault(step_of(line["begin"]), line["at"])
        if "end" in line:
            self.under_way = None
            self.outcomes[line["end"]] = line["outcome"]

    def _replace(self) -> None:
        whole = {"call": self.call, **self.head, "ok": self.ok, "outcomes": self.outcomes}
        path = self.folder / f"{self.call}.json"
        beside = path.with_suffix(".json.new")
        with open(beside, "w") as file:
            file.write(json.dumps(_plain(whole)) + "\n")
            file.flush()
            os.fsync(file.fileno())
        beside.replace(path)


def step_of(name: str) -> str:
    return name.partition("/")[0]


def right(outcome: Mapping[str, Any]) -> bool:
    """True if an item ran to its end and found no wrong number or token."""
    return "result" in outcome and outcome["result"].get("ok") is not False


def _plain(value: Any) -> Any:
    """A value that JSON has: numbers that are not finite as text, numpy's as Python's."""
    if isinstance(value, Mapping):
        return {str(key): _plain(one) for key, one in value.items()}
    if isinstance(value, list | tuple | set | frozenset):
        return [_plain(one) for one in value]
    if hasattr(value, "item"):
        return _plain(value.item())
    if isinstance(value, float):
        return value if math.isfinite(value) else str(value)
    return value if isinstance(value, str | int | bool | None) else str(value)
