"""What earlier runs found out about checkpoint folders: digests of their weight files, so that none is hashed twice.

A digest holds as long as device, inode, size, mtime and ctime of the file are the same. No program can set a ctime, so
a file that was written to is hashed again, whatever its mtime says; one that was only touched is hashed again too, and
has the same digest. A digest is kept only if the file had been at rest for SETTLED_NS when it was hashed, because a
write within one tick of the clock changes no time. The limit: a file system that reports a false inode or ctime, or an
administrator who sets the clock back, is believed. `llmc build` hashes every file every time.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from ...runtime.errors import EngineError
from ...runtime.files.records import plain, read
from ...runtime.files.sealed import read_sealed, write_sealed
from ..checkpoint.checkpoint import Checkpoint
from ..checkpoint.folder import FileFacts, is_unchanged

FOLDER = "checkpoints"
"""Where the records lie in llmc's cache folder."""
SETTLED_NS = 2_000_000_000
"""The coarsest clock of a file system in use (FAT)."""
_NAME_DIGITS = 32


@dataclass(frozen=True)
class Known:
    """A file's digest, and the facts with which it holds."""

    facts: str
    sha256: str


@dataclass(frozen=True)
class Record:
    """A checkpoint folder: digests of its weight files by name, and the keys of the engines that were made of it."""

    path: str
    files: Mapping[str, Known] = field(default_factory=dict)
    engines: tuple[str, ...] = ()

    def digests(self, files: Sequence[FileFacts]) -> dict[str, str]:
        """The digests, by name, that still hold."""
        known = {one.name: self.files.get(one.name) for one in files}
        return {one.name: k.sha256 for one in files if (k := known[one.name]) is not None and k.facts == _facts(one)}


class Remembered:
    """The records of all folders, one file each."""

    def __init__(self, cache: Path) -> None:
        self.folder = cache / FOLDER

    def record(self, path: Path) -> Record:
        """The record of a checkpoint folder, empty if there is none."""
        found = self._read(self._file(str(path)))
        return found if found is not None and found.path == str(path) else Record(str(path))

    def all(self) -> Iterator[tuple[Path, Record]]:
        """Every record with its file."""
        for file in sorted(self.folder.glob("*")):
            if len(file.name) == _NAME_DIGITS and (record := self._read(file)) is not None:
                yield file, record

    def remember(self, checkpoint: Checkpoint, digests: Mapping[str, str], since: float) -> None:
        """Keep the digests of weight files that were at rest at `since`, the time when hashing began.

        What cannot be written is not remembered, and costs time only.
        """
        before = self.record(checkpoint.path)
        shards = [opened.facts for opened in checkpoint.files.shards]
        held, settled = before.digests(shards), int(since * 1e9) - SETTLED_NS
        files = {
            one.name: Known(_facts(one), digests[one.name])
            for one in shards
            if one.name in held or (max(one.identity[3:]) < settled and is_unchanged(one))
        }
        self._write(before, replace(before, files=files))

    def made(self, path: Path, key: str) -> None:
        """Keep that an engine was made of a checkpoint folder."""
        before = self.record(path)
        if key not in before.engines:
            self._write(before, replace(before, engines=(*before.engines, key)))

    def forget(self, keys: Sequence[str]) -> None:
        """Take engines out of all records; a record without any goes."""
        for file, record in [*self.all()]:
            left = tuple(key for key in record.engines if key not in keys)
            if not left:
                file.unlink(missing_ok=True)
            else:
                self._write(record, replace(record, engines=left))

    def _write(self, before: Record, record: Record) -> None:
        if record != before:
            write_sealed(self._file(record.path), plain(record))

    def _file(self, path: str) -> Path:
        return self.folder / hashlib.sha256(path.encode("utf-8", "surrogateescape")).hexdigest()[:_NAME_DIGITS]

    def _read(self, file: Path) -> Record | None:
        try:
            return read(Record, read_sealed(file), str(file))
        except EngineError:
            return None


def now() -> float:
    """The time that `remember` compares with times of files."""
    return time.time()


def _facts(one: FileFacts) -> str:
    return ":".join(map(str, one.identity))
