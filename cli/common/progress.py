"""Progress for people: bars on a terminal; elsewhere one line every 30 seconds."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from ...runtime.progress import BYTES, NO_PROGRESS, Progress
from . import console, huge_pages

if TYPE_CHECKING:
    from rich.progress import Progress as RichProgress
    from rich.progress import Task

_HEARTBEAT_S = 30.0


def for_terminal(quiet: bool) -> Progress:
    """The progress that fits stderr; `quiet` (with --json) reports nothing."""
    if quiet:
        return NO_PROGRESS
    if console.at_terminal():
        return _Bars()
    return _Lines()


def loading(engine: Path, quiet: bool) -> AbstractContextManager[object]:
    """The stage of loading an engine; a small one is loaded before a bar is drawn, so it has none."""
    large = engine.is_file() and engine.stat().st_size >= huge_pages.WORTHWHILE_BYTES
    return (for_terminal(quiet) if large else NO_PROGRESS).stage("load engine")


def counts(done: float, total: float | None, unit: str) -> str:
    """How far a stage is: "1.00 of 4.00 GiB", "3 of 12 kernels"; "" while nothing is known."""
    if unit != BYTES:
        return f"{done:.0f} of {total:.0f} {unit}" if total else f"{done:.0f} {unit}" if done else ""
    if not total:
        return console.size(int(done)) if done else ""
    return f"{console.size(int(done))} of {console.size(int(total))}"


class _Lines:
    @contextmanager
    def stage(self, name: str, total: int | None = None, unit: str = BYTES) -> Iterator[Callable[[int], None]]:
        lock = threading.Lock()
        done, spoke = 0, time.monotonic()

        def advance(count: int) -> None:
            nonlocal done, spoke
            with lock:
                done += count
                if time.monotonic() - spoke < _HEARTBEAT_S:
                    return
                spoke = time.monotonic()
                console.note(f"{name}: {counts(done, total, unit)}")

        yield advance


class _Bars:
    """One live display for all open stages: rich allows one per terminal."""

    def __init__(self) -> None:
        self._lock, self._display = threading.Lock(), _display()

    @contextmanager
    def stage(self, name: str, total: int | None = None, unit: str = BYTES) -> Iterator[Callable[[int], None]]:
        display = self._display
        with self._lock:
            console.begin()
            display.start()  # does nothing if it runs already
            task = display.add_task(name, total=total, unit=unit)
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
    from rich.table import Column
    from rich.text import Text

    whole = Column(no_wrap=True)

    class Counts(progress.ProgressColumn):
        def render(self, task: Task) -> Text:
            return Text(counts(task.completed, task.total, task.fields["unit"]))

    class Left(progress.ProgressColumn):
        """The time left once a speed is known, and always the time since the start."""

        def render(self, task: Task) -> Text:
            left = task.time_remaining
            known = f", {_clock(left)} left" if task.total and left else ""
            return Text(f"{_clock(task.elapsed or 0)}{known}")

    return progress.Progress(
        progress.SpinnerColumn(),
        progress.TextColumn("{task.description:<16}", markup=False, table_column=whole),
        progress.BarColumn(bar_width=16),
        Counts(table_column=whole),
        Left(table_column=whole),
        console=Console(stderr=True),
        redirect_stdout=False,  # else what is written to stdout, also into a file, would go to this console
        transient=True,
    )


def _clock(seconds: float) -> str:
    return f"{int(seconds) // 60}:{int(seconds) % 60:02}"
