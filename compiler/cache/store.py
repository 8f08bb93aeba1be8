"""The engines of the cache on disk: one file each under its key, written whole or not at all."""

from __future__ import annotations

import fcntl
import os
import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Literal

from ...runtime.engine_file.file import EngineFile
from ...runtime.environment import cache_folder
from ...runtime.errors import EngineError, ResourceError
from ..engine.atomic import NO_LOCKS, sweep
from .identity import DIGITS

FOLDER = "engines"
"""Where the engines lie in llmc's cache folder."""
_KEY = rf"[0-9a-f]{{{DIGITS}}}"
_ENGINE = re.compile(rf"({_KEY})\.llmc")
_LEFT = re.compile(rf"\.({_KEY})\.(llmc\.[0-9]+\.[0-9a-f]{{16}}|lock)")


class Store:
    """The engines by key."""

    def __init__(self, cache: Path) -> None:
        self.cache = cache
        self.folder = cache / FOLDER

    @staticmethod
    def default() -> Store:
        """The user's; see LLMC_CACHE.

        Raises:
            ResourceError: there is no cache.
        """
        folder = cache_folder()
        if folder is None:
            raise ResourceError(
                "cannot keep engines without a cache folder",
                found="LLMC_CACHE is empty, or no home directory",
                fix="LLMC_CACHE=FOLDER; or llmc build CHECKPOINT -o OUT.llmc, and llmc run OUT.llmc",
            )
        return Store(folder.absolute())

    def path(self, key: str) -> Path:
        """Where the engine of a key lies, or would."""
        return self.folder / f"{key}.llmc"

    def engine_keys(self) -> list[str]:
        """The keys of all engines."""
        return [found[1] for name in self._names() if (found := _ENGINE.fullmatch(name))]

    def unfinished(self) -> list[Path]:
        """Files of builds that run now or were killed."""
        return [self.folder / name for name in self._names() if _LEFT.fullmatch(name)]

    def sweep(self) -> None:
        """Delete what killed builds have left; files of running builds are locked and stay."""
        for key in sorted({found[1] for path in self.unfinished() if (found := _LEFT.fullmatch(path.name))}):
            with suppress(OSError):
                sweep(self.path(key))
                os.close(_locked(self._lock(key), None, create=False))
                self._lock(key).unlink()

    def damage(self, key: str, verify: Literal["header", "full"], files: Mapping[str, str]) -> str:
        """Why an engine of a checkpoint's `files`, which have these digests, cannot be used, or "".

        Header and all sections are checked, with "full" every byte.
        """
        try:
            with EngineFile.open(self.path(key), verify=verify) as engine:
                if dict(engine.manifest.checkpoint.files) != dict(files):
                    return "an engine of another checkpoint"
                for name in engine.sections:
                    engine.section(name)
        except EngineError as error:
            return f"{error.asked}: {error.found}"
        return ""

    def touch(self, key: str) -> None:
        """Say that an engine was used now: its file's time."""
        with suppress(OSError):
            os.utime(self.path(key))

    def remove(self, key: str) -> int:
        """Delete an engine and return its bytes; a process that has it open keeps reading it.

        Raises:
            ResourceError: it cannot be deleted.
        """
        path = self.path(key)
        try:
            size = path.stat().st_size
            path.unlink()
        except FileNotFoundError:  # another process was faster
            return 0
        except OSError as problem:
            raise ResourceError(f"cannot remove {path}", found=str(problem.strerror)) from problem
        return size

    @contextmanager
    def lock(self, key: str, waiting: Callable[[], None]) -> Iterator[None]:
        """Only one process at a time builds an engine; `waiting` is called before this one has to wait.

        The file of a lock goes with its holder. On a file system without locks several processes build the same bytes.

        Raises:
            ResourceError: the cache's folder cannot be written.
        """
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            fd = _locked(self._lock(key), waiting)
        except OSError as problem:
            raise ResourceError(
                f"cannot write the cache folder {self.folder}",
                found=str(problem.strerror),
                fix="LLMC_CACHE=FOLDER that can be written, or llmc build CHECKPOINT -o OUT.llmc",
            ) from problem
        try:
            yield
        finally:
            with suppress(OSError):
                self._lock(key).unlink()
            os.close(fd)

    def _lock(self, key: str) -> Path:
        return self.folder / f".{key}.lock"

    def _names(self) -> list[str]:
        try:
            with os.scandir(self.folder) as entries:
                return sorted(entry.name for entry in entries if not entry.is_dir(follow_symlinks=False))
        except OSError:
            return []


def _locked(path: Path, waiting: Callable[[], None] | None, *, create: bool = True) -> int:
    """A descriptor of a file that this process has locked; without `waiting`, BlockingIOError if another one has.

    A holder deletes the file before it lets go of the lock, so what was waited for may have lost its name: then again.
    """
    while True:
        fd = os.open(path, os.O_RDWR | os.O_CLOEXEC | (os.O_CREAT if create else 0), 0o666)
        try:
            _lock(fd, waiting)
            if os.fstat(fd).st_nlink:
                return fd
        except BaseException:
            os.close(fd)
            raise
        os.close(fd)


def _lock(fd: int, waiting: Callable[[], None] | None) -> None:
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        if waiting is None:
            raise
        waiting()
        fcntl.flock(fd, fcntl.LOCK_EX)
    except OSError as problem:
        if problem.errno not in NO_LOCKS:
            raise
