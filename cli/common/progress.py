"""Progress for people: bars on a terminal; elsewhere one line every 30 seconds."""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from ...runtime.environment import dumb_terminal
from ...runtime.progress import NO_PROGRESS, Progress
from . import console

if TYPE_CHECKING:
    from rich.progress import Progress as RichProgress

_HEARTBEAT_S = 30.0


def for_terminal(quiet: bool) -> Progress:
    """The progress that fits stderr; `quiet` (with --json) reports nothing."""
    if quiet:
        return NO_PROGRESS
    if sys.stderr is not None and sys.stderr.isatty() and not dumb_terminal():
        return _Bars()
    return _Lines()


class _Lines:
    @contextmanager
    def stage(self, name: str, total: int | None = None) -> Iterator[Callable[[int], None]]:
        lock = threading.Lock()
        done, spoke = 0, time.monotonic()

        def advance(count: int) -> None:
            nonlocal done, spoke
            with lock:
                done += count
                if time.monotonic() - spoke < _HEARTBEAT_S:
                    return
                spoke = time.monotonic()
                of = f" of {console.size(total)}" if total else ""
                console.note(f"{name}: {console.size(done)}{of}")

        yield advance


class _Bars:
    """One live display for all open stages: rich allows one per terminal."""

    def __init__(self) -> None:
        self._lock, self._display = threading.Lock(), _display()

    @contextmanager
    def stage(self, name: str, total: int | None = None) -> Iterator[Callable[[int], None]]:
        display = self._display
        with self._lock:
            display.start()  # does nothing if it runs already
            task = display.add_task(name, total=total)
        try:
            yield lambda count: display.advance(task, count)
        finally:
            with self._lock:
                display.remove_task(task)
                if not display.tasks:
                    display.stop()


def _display() -> RichProgress:
    from rich import progress
    from rich.console import Console

    return progress.Progress(
        progress.TextColumn("{task.description:<12}"),
        progress.BarColumn(),
        progress.DownloadColumn(binary_units=True),
        progress.TransferSpeedColumn(),
        progress.TimeElapsedColumn(),
        console=Console(stderr=True),
        transient=True,
    )
