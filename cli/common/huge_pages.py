"""Huge pages for packed weights: each token reads all of them, and misses in the page tables cost 12 %."""

from __future__ import annotations

import os
import sys
from pathlib import Path

from ...runtime.environment import with_huge_pages

WORTHWHILE_BYTES = 128 << 20
_allowed = False


def allow_restart() -> None:
    """Said by the start of the script: this process is llmc's alone."""
    global _allowed
    _allowed = True


def ensure(engine: Path) -> None:
    """Start this process anew with malloc asking for huge pages, if the engine is large and nobody has set malloc.

    malloc reads its settings once, when a process starts. Starting anew costs some 20 ms; small engines do not gain
    them back. A process that uses llmc as a library stays as it is.
    """
    settings = with_huge_pages()
    if not _allowed or sys.platform != "linux" or settings is None:
        return
    if not engine.is_file() or engine.stat().st_size < WORTHWHILE_BYTES:
        return
    sys.stdout.flush()
    sys.stderr.flush()
    os.execve(sys.executable, [sys.executable, *sys.orig_argv[1:]], settings)
