"""Progress for people: bars on a terminal; elsewhere nothing but a sign of life every half minute."""

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
    """One live display for all stages that are open: a terminal holds only one."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._open = 0
        self._display: RichProgress | None = None

    @contextmanager
    def stage(self, name: str, total: int | None = None) -> Iterator[Callable[[int], None]]:
        display = self._enter()
        task = display.add_task(name, total=total)
        try:
            yield lambda count: display.advance(task, count)
        finally:
            display.remove_task(task)
            self._leave()

    def _enter(self) -> RichProgress:
        with self._lock:
            if self._display is None:
                self._display = _display()
                self._display.start()
            self._open += 1
            return self._display

    def _leave(self) -> None:
        with self._lock:
            self._open -= 1
            if self._open == 0 and self._display is not None:
                self._display.stop()
                self._display = None


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
