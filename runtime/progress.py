"""How long work reports how far it is: so that the compiler and the runtime know nothing of terminals."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Protocol


class Progress(Protocol):
    """Receives the stages of a job, one after the other or nested; safe to call from several threads."""

    def stage(self, name: str, total: int | None = None) -> AbstractContextManager[Callable[[int], None]]:
        """Open a stage of `total` bytes (None: unknown); inside it, tell the given function the bytes just done."""
        ...


class _NoProgress:
    @contextmanager
    def stage(self, name: str, total: int | None = None) -> Iterator[Callable[[int], None]]:
        yield lambda _done: None


NO_PROGRESS: Progress = _NoProgress()
