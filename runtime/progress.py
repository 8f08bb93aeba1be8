"""The interface for progress reports: compiler and runtime report to it and do not depend on a terminal."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Protocol


class Progress(Protocol):
    """Receives the stages of a job, in sequence or nested; safe to call from several threads."""

    def stage(self, name: str, total: int | None = None) -> AbstractContextManager[Callable[[int], None]]:
        """Open a stage of `total` bytes (None: unknown); call the yielded function with the bytes of each part done."""
        ...


class _NoProgress:
    @contextmanager
    def stage(self, name: str, total: int | None = None) -> Iterator[Callable[[int], None]]:
        yield lambda _done: None


NO_PROGRESS: Progress = _NoProgress()
