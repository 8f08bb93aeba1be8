"""The interface for reports of progress and decisions: compiler and runtime do not depend on a terminal.

--debug and LLMC_DEBUG are a ladder, each level includes those below it: 1 passes that fired, the profile chosen,
tracebacks of errors; 2 every pass with its nearest miss; 3 launches with their times; 4 the PTX of kernels.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from typing import Protocol

from . import environment
from .errors import printable

BYTES = "B"
"""The unit of a stage that counts bytes."""


class Progress(Protocol):
    """Receives the stages of a job, in sequence or nested; safe to call from several threads."""

    def stage(
        self, name: str, total: int | None = None, unit: str = BYTES
    ) -> AbstractContextManager[Callable[[int], None]]:
        """Open a stage of `total` units (None: unknown); call the yielded function with the units of each part done.

        `unit` is BYTES or a noun in the plural, such as "kernels".
        """
        ...


class _NoProgress:
    @contextmanager
    def stage(self, name: str, total: int | None = None, unit: str = BYTES) -> Iterator[Callable[[int], None]]:
        yield lambda _done: None


NO_PROGRESS: Progress = _NoProgress()


_level: int | None = None
"""The level of this process; None until it is first asked for."""
_speaker = ""
"""Which of several processes that share stderr this is."""


def set_debug_level(asked: str | None) -> None:
    """Set the level to that of --debug, else of LLMC_DEBUG; it is 0 if the value is refused.

    Raises:
        RecipeError: it is not a number from 0 to 4.
    """
    global _level
    _level = 0
    _level = environment.debug(asked)


def debug_level() -> int:
    """The level of this process."""
    if _level is None:
        set_debug_level(None)
    return _level or 0


def speak_as(name: str) -> None:
    """Begin every text with the name of this process, which shares stderr with others."""
    global _speaker
    _speaker = f"{name}: "


def debugging(level: int) -> bool:
    """True if texts of this level are shown."""
    return level <= debug_level()


def debug(level: int, text: str | Callable[[], str]) -> None:
    """Write a text to stderr if its level is shown; a function makes it only then."""
    if debugging(level):
        shown = text if isinstance(text, str) else text()
        with suppress(OSError):
            print(printable(f"debug {level}: {_speaker}{shown}"), file=sys.stderr, flush=True)


@contextmanager
def timed(level: int, text: str) -> Iterator[None]:
    """Write a text with the milliseconds that the body took; nothing unless the level is shown."""
    if not debugging(level):
        yield
        return
    start = time.perf_counter()
    yield
    debug(level, f"{text}: {1e3 * (time.perf_counter() - start):.3f} ms")
