"""Huge pages for packed weights: each token reads all of them, and misses in the page tables cost 12 %."""

from __future__ import annotations

import os
import sys
from contextlib import suppress
from pathlib import Path

from ...runtime.environment import with_huge_pages
from . import console

WORTHWHILE_BYTES = 128 << 20
_allowed = False


def allow_restart() -> None:
    """Called by the `llmc` script: the process runs nothing but llmc, so it may be started again."""
    global _allowed
    _allowed = True


def ensure(engine: Path) -> None:
    """Restart this process with huge pages for malloc, if the engine is large and the user has not set malloc.

    malloc reads its settings once, when a process starts. A restart costs about 20 ms, more than a small engine gains.
    A process that uses llmc as a library is never restarted.
    """
    if engine.is_file() and engine.stat().st_size >= WORTHWHILE_BYTES:
        restart()


def restart() -> None:
    """Restart this process with huge pages for malloc, unless it has them or may not."""
    settings = with_huge_pages()
    if not _allowed or sys.platform != "linux" or settings is None:
        return
    console.begin()
    sys.stdout.flush()
    sys.stderr.flush()
    with suppress(OSError):  # for lack of memory: then without huge pages
        os.execve(sys.executable, [sys.executable, *sys.orig_argv[1:]], settings)
