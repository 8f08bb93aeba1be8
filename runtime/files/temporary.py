"""Folders for files of this process alone; those of processes that were killed are deleted by the next one.

The owner holds a lock on its folder, which the system gives up with the process, also across containers.
"""

from __future__ import annotations

import os
import re
import shutil
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

_NAME = re.compile(r"llmc-own-[a-z]+-[a-z0-9_]{8}")
_locks: dict[Path, int] = {}


def sweep() -> tuple[Path, ...]:
    """Delete what killed processes of this user left in the system's folder for such files, and return it."""
    if sys.platform == "win32":
        return ()
    try:
        found = [Path(tempfile.gettempdir(), name) for name in sorted(os.listdir(tempfile.gettempdir()))]
    except OSError:  # nor can anything be made there, and who does says so
        return ()
    return tuple(path for path in found if _NAME.fullmatch(path.name) and _delete_if_left(path))


def make(use: str) -> Path:
    """A new, empty folder, until `remove`; `use` is the word of its name that says for what."""
    sweep()
    while True:
        path = Path(tempfile.mkdtemp(prefix=f"llmc-own-{use}-"))
        if sys.platform == "win32":
            return path
        with suppress(FileNotFoundError):  # another process swept it before the lock
            fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
            _lock(fd, wait=True)
            _locks[path] = fd
            if path.exists():
                return path
            os.close(_locks.pop(path))


def remove(path: Path) -> None:
    """Delete a folder that `make` made."""
    shutil.rmtree(path, ignore_errors=True)
    if path in _locks:
        os.close(_locks.pop(path))


@contextmanager
def folder(use: str) -> Iterator[Path]:
    """A new, empty folder that is deleted at the end."""
    path = make(use)
    try:
        yield path
    finally:
        remove(path)


def _delete_if_left(path: Path) -> bool:
    try:
        fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    except OSError:  # deleted already, no folder, or another user's
        return False
    try:
        if os.fstat(fd).st_uid != os.geteuid() or not _lock(fd, wait=False):
            return False
        shutil.rmtree(path, ignore_errors=True)
        return not path.exists()
    finally:
        os.close(fd)


def _lock(fd: int, *, wait: bool) -> bool:
    """True if the folder is locked now; False if another process has it, or on a file system without locks."""
    import fcntl

    try:
        fcntl.flock(fd, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
    except OSError:
        return False
    return True
