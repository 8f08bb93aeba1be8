"""The process that supervises a call: starts the one that measures, and another when that crashes, hangs or asks.

It never touches the device. Whatever happens, every item has an outcome in the end, and a short table is printed last.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bringup.bench import Bench
from bringup.perform import RESTART, leave_out
from bringup.step import Step

SPARE = 3.0
"""Seconds kept for the table."""
GRACE = 0.5
"""Seconds an item may take beyond its limit."""
STARTUP = 25.0
"""Seconds between two items after which a process hangs."""
_POLL = 0.05
_TRIES = 2
"""Processes that may end without having begun an item."""
_TAIL = 1500


@dataclass
class Supervisor:
    """A call under way. command: starts a process that measures; it is given when the call ends."""

    steps: Sequence[Step]
    bench: Bench
    command: Callable[[float], Sequence[str]]
    seconds: float

    def run(self) -> bool:
        """True if every item ran and found nothing wrong."""
        until = time.monotonic() + self.seconds - SPARE
        why, idle, journal = "the time of the call is over", 0, self.bench.journal
        try:
            while time.monotonic() < until:
                known = len(journal.outcomes)
                code, hung = self._watch(until)
                journal.refresh()
                if code == 0:
                    break
                if journal.under_way is not None:
                    self._ended(code, hung)
                idle = 0 if len(journal.outcomes) > known else idle + 1
                if idle == _TRIES:
                    why = f"the process that measures ends by itself, {_named(code)}: {self._tail()}"
                    break
        except KeyboardInterrupt:
            why = "the call was ended from outside"
        leave_out(self.steps, self.bench, why)
        return journal.ok

    @property
    def _log(self) -> Path:
        return self.bench.journal.folder / f"{self.bench.journal.call}.log"

    def _watch(self, until: float) -> tuple[int, bool]:
        """Exit code of a process that measures, and whether it was killed because it hung."""
        journal = self.bench.journal
        with open(self._log, "ab") as log:
            child = subprocess.Popen(self.command(until), stdout=log, stderr=log, start_new_session=True)
        moved, seen = time.monotonic(), None
        try:
            while True:
                try:
                    return child.wait(_POLL), False
                except subprocess.TimeoutExpired:
                    journal.refresh()
                now, begun = time.monotonic(), journal.under_way
                if (begun, len(journal.outcomes)) != seen:
                    moved, seen = now, (begun, len(journal.outcomes))
                limit = begun.limit + GRACE if begun is not None else STARTUP
                if now - moved > limit or now > until + GRACE:
                    return _kill(child), True
        finally:
            _kill(child)

    def _ended(self, code: int, hung: bool) -> None:
        """The outcome of an item whose process is gone."""
        journal = self.bench.journal
        begun = journal.under_way
        assert begun is not None
        seconds = time.monotonic() - begun.at
        error = f"hangs: killed after {seconds:.1f} s" if hung else f"the process ended, {_named(code)}"
        rung = {"rung": journal.head["rung"]} if "rung" in journal.head else {}
        told = {"error": error, "log": self._tail(), "sticky": True, "cuda": None}
        journal.end(begun.name, {"seconds": seconds, **rung, **told})

    def _tail(self) -> str:
        """The last lines that processes of this call have printed."""
        data = self._log.read_bytes() if self._log.exists() else b""
        return data[-_TAIL:].decode(errors="replace").strip()


def _kill(child: subprocess.Popen[Any]) -> int:
    """End a process and all it started; its exit code, or -9 where it does not end."""
    with suppress(ProcessLookupError, PermissionError):
        os.killpg(child.pid, signal.SIGKILL)
    try:
        return child.wait(10)
    except subprocess.TimeoutExpired:
        return -signal.SIGKILL


def _named(code: int) -> str:
    if code == RESTART:
        return "to be started again"
    if code < 0:
        return f"signal {signal.Signals(-code).name}"
    return f"exit {code}"


def measuring(call: str, options: Mapping[str, Any], until: float) -> list[str]:
    """The command of a process that measures."""
    script = Path(__file__).resolve().parent.parent / "gpu_first.py"
    flags = [part for name, value in options.items() if value is not None for part in (f"--{name}", str(value))]
    return [sys.executable, "-X", "faulthandler", str(script), call, *flags, "--until", str(until)]
