"""Keeps the print of a Rust panic from the terminal: the library writes it to descriptor 2 before it raises.

Only in the `llmc` script, whose process runs nothing but llmc. A library must not move the descriptors of its host, so
with the Python API the print stays; the error is the same.
"""

from __future__ import annotations

import os
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager

_owned = False
_lock = threading.Lock()


def own_stderr() -> None:
    """Called by the `llmc` script."""
    global _owned
    _owned = True


@contextmanager
def panics_unprinted() -> Iterator[None]:
    """What is written to stderr within comes after it, or not at all if a panic ends it, which the error tells."""
    if not _owned or not hasattr(os, "memfd_create"):
        yield
        return
    with _lock:
        said, kept = os.memfd_create("llmc-stderr"), os.dup(2)
        try:
            if sys.stderr is not None:
                sys.stderr.flush()
            os.dup2(said, 2)
            panicked = False
            try:
                yield
            except Exception:
                raise
            except BaseException as error:
                panicked = not isinstance(error, KeyboardInterrupt | SystemExit | GeneratorExit)
                raise
            finally:
                os.dup2(kept, 2)
                if not panicked:
                    os.write(2, os.pread(said, 1 << 20, 0))
        finally:
            os.close(kept)
            os.close(said)
