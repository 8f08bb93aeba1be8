"""Files that get their names when they are complete: locked temporary files, room for them, renaming a set as one."""

from __future__ import annotations

import errno
import fcntl
import os
import re
import secrets
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path

from ...runtime.engine_file.file import read_manifest
from ...runtime.engine_file.shards import is_shard_of, owned
from ...runtime.errors import LlmcError

NO_LOCKS = (errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOSYS, errno.EINVAL)
"""Errors of a file system without locks."""
_NO_FOLDER_LOCKS = (*NO_LOCKS, errno.EBADF, errno.EACCES)
"""NFS locks only what is open for writing, and a folder never is."""
_NO_RESERVING = (errno.EOPNOTSUPP, errno.ENOSYS, errno.EINVAL)
"""Errors of a file system that cannot reserve space."""


def place(path: Path, temp: Path, others: Mapping[Path, Path]) -> None:
    """Rename the complete file `temp` to `path`, after the `others`: temporary file to its path.

    Until the last rename `path` has the old engine and its files. Then the old one's further files are deleted.
    Another build of the folder waits meanwhile.

    Raises:
        OSError: a rename failed, and the old engine is as it was; or it may not survive a power cut, if only the last
            fsync failed.
    """
    with _locked_folder(path.parent) as folder:
        old = _further(path, path) if _has_further(path) else set()
        new: list[Path] = []
        record = _temporary(path)
        try:
            if old:
                with suppress(OSError):  # without links a kill before the last deletion leaves the old one's files
                    os.link(path, record)
            for one, final in others.items():
                there = final.exists()
                os.rename(one, final)
                new += [] if there else [final]
            if others:
                os.fsync(folder)
            os.rename(temp, path)
            os.fsync(folder)
        except BaseException:
            for one in (*new, record) if temp.exists() else ():
                _delete(one)
            raise
        for one in (*old.difference(others.values()), record):
            _delete(one)


def sweep(path: Path) -> tuple[Path, ...]:
    """Delete files that killed builds of `path` left, and return them; the file of a running build is locked.

    A build that was killed while it renamed has left its first file, or a link to the old one's, which list the files
    that have their names already or still.
    """
    pattern = re.compile(re.escape(f".{path.name}.") + r"[0-9]+\.[0-9a-f]{16}")
    found = [path.parent / name for name in sorted(os.listdir(path.parent)) if pattern.fullmatch(name)]
    if not found or not _has_further(path):
        return tuple(temp for temp in found if _delete_if_stale(temp, path))
    with _locked_folder(path.parent):
        kept = _further(path, path)
        return tuple(temp for temp in found if _delete_if_stale(temp, path, kept))


def _has_further(path: Path) -> bool:
    """True if files stand there that builds of `path` may have written: only then are manifests read."""
    return any(is_shard_of(path, name) for name in os.listdir(path.parent))


def _further(path: Path, first: Path) -> set[Path]:
    """The files that the first file `first` lists and builds of `path` have written; none if it is no engine."""
    with suppress(LlmcError, OSError):
        return set(owned(path, read_manifest(first)))
    return set()


def _delete(path: Path) -> None:
    with suppress(OSError):  # another user's, or deleted already
        path.unlink()


def _delete_if_stale(temp: Path, path: Path, kept: Collection[Path] | None = None) -> bool:
    """Delete a temporary file of a killed build, after the files that it lists and that are not to be `kept`."""
    try:
        fd = os.open(temp, os.O_RDWR | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError:  # deleted already, or another user's
        return False
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        for one in () if kept is None else _further(path, temp).difference(kept):
            _delete(one)
        temp.unlink()
    except OSError:  # locked by a running build, renamed meanwhile, or on a file system without locks
        return False
    finally:
        os.close(fd)
    return True


def _temporary(path: Path) -> Path:
    return path.with_name(f".{path.name}.{os.getpid()}.{secrets.token_hex(8)}")


def create(path: Path) -> tuple[Path, int]:
    """Create and lock a new file next to `path`; retries if another build's `sweep` deleted it before the lock."""
    while True:
        temp = _temporary(path)
        fd = os.open(temp, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o666)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX)
        except OSError as problem:
            if problem.errno not in NO_LOCKS:
                os.close(fd)
                temp.unlink()
                raise
        if os.fstat(fd).st_nlink:
            return temp, fd
        os.close(fd)


def reserve(fd: int, size: int) -> None:
    """Reserve the space, so that a full disk is found before the work, not after it."""
    if hasattr(os, "posix_fallocate"):
        try:
            os.posix_fallocate(fd, 0, size)
            return
        except OSError as problem:
            if problem.errno not in _NO_RESERVING:
                raise
    os.ftruncate(fd, size)


def refuse_odd_target(path: Path) -> None:
    """Refuse, before the work, a path that rename could not replace."""
    if path.exists() and not path.is_file():
        raise OSError(errno.EEXIST, "the path exists and is not a file")


@contextmanager
def _locked_folder(folder: Path) -> Iterator[int]:
    """A descriptor of the folder, which one process at a time has; where folders have no locks, without waiting."""
    fd = os.open(folder, os.O_RDONLY | os.O_CLOEXEC)
    try:
        try:
            fcntl.flock(fd, fcntl.LOCK_EX)
        except OSError as problem:
            if problem.errno not in _NO_FOLDER_LOCKS:
                raise
        yield fd
    finally:
        os.close(fd)
