"""Opens files of a checkpoint folder: no name, link or swap can lead out of the folder, and no open blocks."""

from __future__ import annotations

import os
import re
import stat
import time
import weakref
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from ...runtime.errors import CheckpointError
from ...runtime.files.safetensors import kind_of_file, read_at
from ...runtime.files.strict_json import loads
from ...runtime.guard.shortage import shortage
from ..config.fields import shown

INDEX = "model.safetensors.index.json"
SINGLE = "model.safetensors"
_MAX_INDEX_BYTES = 64 << 20
_TICK_NS = 10_000_000
"""The coarsest tick of a kernel's clock (100 Hz): of two writes within one, the second changes no time of the file."""
_DEVICES = re.compile(r"(con|prn|aux|nul|conin\$|conout\$|com[0-9]|lpt[0-9])(\.|$)", re.IGNORECASE)
_COMMIT = re.compile(r"[0-9a-f]{40}")
_PART = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,95}")
"""A part of a hub id."""


@dataclass(frozen=True)
class FileFacts:
    """A file as it was when it was opened."""

    name: str
    bytes: int
    shown: str
    """The path that messages name."""
    path: Path
    """The path with all links resolved."""
    identity: tuple[int, int, int, int, int]
    """Device, inode, size, and in ns mtime and ctime. A program can put an mtime back, and none sets a ctime."""


class OpenFile:
    """An open file that any number of threads may read at offsets; closed with the last reference to it."""

    def __init__(self, fd: int, facts: FileFacts) -> None:
        self.fd, self.facts = fd, facts
        weakref.finalize(self, os.close, fd)

    def read_into(self, buffer: memoryview, offset: int) -> None:
        """Fill the buffer from `offset`.

        Raises:
            CheckpointError: the file cannot be read, or ends before the buffer is full.
        """
        done = 0
        while done < len(buffer):
            try:
                count = os.preadv(self.fd, [buffer[done : done + (1 << 30)]], offset + done)
            except OSError as problem:
                asked = f"cannot read {self.facts.shown}"
                raise shortage(problem, asked) or CheckpointError(asked, found=str(problem.strerror)) from None
            if count == 0:
                found = f"its end at byte {offset + done}"
                raise CheckpointError(
                    f"expected {self.facts.bytes} bytes in {self.facts.shown}, as when it was opened", found=found
                )
            done += count


class Folder:
    """A checkpoint folder.

    Its files may be links, but only to files in the folder itself or, in a snapshot of the Hugging Face cache, to files
    in the cache folder of the same repository.
    """

    def __init__(self, path: Path) -> None:
        self.path = path.resolve()
        snapshot = self.path.parent.name == "snapshots" and _COMMIT.fullmatch(self.path.name)
        self.commit: str | None = self.path.name if snapshot else None
        self.hub_id: str | None = _hub_id(self.path.parent.parent.name) if snapshot else None
        self.root = self.path.parent.parent if snapshot else self.path

    def names(self) -> list[str]:
        try:
            return sorted(os.listdir(self.path))
        except OSError as problem:
            asked = f"cannot read folder {self.path}"
            raise shortage(problem, asked) or CheckpointError(asked, found=str(problem.strerror)) from None

    def has(self, name: str) -> bool:
        return os.path.lexists(self.path / name)

    def open(self, name: str) -> OpenFile:
        """Open a file of the folder.

        Raises:
            CheckpointError: the file is missing, is not a regular file, or leads out of the folder.
        """
        path = self._resolve(name)
        try:
            fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
        except OSError as problem:
            found = "a link put there meanwhile" if path.is_symlink() else str(problem.strerror)
            raise shortage(problem) or self._error(name, "a readable regular file", found) from None
        now = os.fstat(fd)
        opened = OpenFile(fd, FileFacts(name, now.st_size, str(self.path / name), path, _identity(now)))
        if not stat.S_ISREG(now.st_mode):
            raise self._error(name, "a regular file", kind_of_file(now.st_mode))
        fresh = now.st_ctime_ns + _TICK_NS - time.time_ns()
        if 0 < fresh <= _TICK_NS:  # what is written after this wait changes the ctime
            time.sleep(fresh / 1e9)
        # A folder above the file may have been swapped between `_resolve` and `os.open`: check the path again.
        if self._resolve(name) != path or not is_unchanged(opened.facts):
            raise self._error(name, "a file that stays in place", "it was replaced meanwhile")
        return opened

    def read(self, name: str, max_bytes: int, *, one_name: bool = False) -> tuple[bytes, FileFacts]:
        """The content of a small file, and its facts; with `one_name`, it may not be a hard link.

        Raises:
            CheckpointError: the file cannot be opened, or is larger than `max_bytes`; then it is not read.
        """
        opened = self.open(name)
        if one_name:
            refuse_hard_link(self, opened)
        if opened.facts.bytes > max_bytes:
            raise self._error(name, f"a file of at most {max_bytes} bytes", f"{opened.facts.bytes} bytes")
        data = read_at(opened.fd, 0, opened.facts.bytes, what=opened.facts.shown, error=CheckpointError)
        return data, opened.facts

    def _resolve(self, name: str) -> Path:
        try:
            path = (self.path / name).resolve(strict=True)
        except FileNotFoundError:
            found = "a link to nothing" if self.has(name) else "no such file"
            raise self._error(name, "a file of the checkpoint", found, "download the checkpoint again") from None
        except (OSError, RuntimeError) as problem:  # RuntimeError: links in a circle
            found = str(getattr(problem, "strerror", None) or problem)
            raise shortage(problem) or self._error(name, "a file of the checkpoint", found) from None
        if not path.is_relative_to(self.root):
            asked = "a file inside the checkpoint folder"
            raise self._error(name, asked, f"a link to {path}", "copy the file into the folder")
        return path

    def _error(self, name: str, expected: str, found: str, fix: str = "") -> CheckpointError:
        return CheckpointError(f"expected {expected} at {self.path / name}", found=found, fix=fix)


def _hub_id(repository: str) -> str | None:
    """The id of a model from the name of its folder in the Hugging Face cache, such as models--org--name."""
    kind, *parts = repository.split("--")
    named = kind == "models" and len(parts) in (1, 2) and all(map(_PART.fullmatch, parts))
    return "/".join(parts) if named else None


def refuse_hard_link(folder: Folder, opened: OpenFile) -> None:
    """Refuse a file with a second name: the file can be changed, or exposed, through the other name.

    The Hugging Face cache is exempt, since its blobs may be shared on purpose.

    Raises:
        CheckpointError: the file has more than one name.
    """
    links = os.fstat(opened.fd).st_nlink
    if links > 1 and folder.commit is None:
        raise CheckpointError(
            f"expected a file with one name at {opened.facts.shown}",
            found=f"a hard link, {links} names",
            fix="copy the checkpoint folder (cp -r, not cp -l)",
        )


def is_unchanged(facts: FileFacts) -> bool:
    """True if the path still names the same file, and nobody has changed it: see `FileFacts.identity`."""
    try:
        now = os.stat(facts.path, follow_symlinks=False)
    except OSError:
        return False
    return _identity(now) == facts.identity


def _identity(now: os.stat_result) -> tuple[int, int, int, int, int]:
    return now.st_dev, now.st_ino, now.st_size, now.st_mtime_ns, now.st_ctime_ns


def check_shard_name(name: object, what: str) -> str:
    """Return `name` if it names a file of this folder on every operating system.

    Raises:
        CheckpointError: it is not a plain .safetensors file name; `what` is the file that lists it.
    """
    reason = _name_fault(name) if isinstance(name, str) else "not a string"
    if reason:
        raise CheckpointError(f"expected plain file names of shards in {what}", found=f"{shown(name)}: {reason}")
    return str(name)


def _name_fault(name: str) -> str:
    if not name or len(name.encode()) > 255:
        return "of 1 to 255 bytes wanted"
    if name in (".", "..") or "/" in name or "\\" in name:
        return "leads to another folder"
    if not name.isprintable() or any(mark in name for mark in ':*?"<>|'):
        return "a character that file names cannot have everywhere"
    if _DEVICES.match(name) or name[-1] in ". ":
        return "a device or a name that Windows changes"
    if not name.endswith(".safetensors"):
        return "not a .safetensors file"
    return ""


def read_index(data: bytes, what: str) -> tuple[dict[str, str], int | None]:
    """{tensor: shard} of a model.safetensors.index.json, and metadata.total_size (None if absent).

    Raises:
        CheckpointError: the file is not JSON, has no weight_map, or lists a shard name that is not plain.
    """
    index = loads(data, what=what, error=CheckpointError, max_bytes=_MAX_INDEX_BYTES)
    table = index.get("weight_map") if isinstance(index, dict) else None
    if not isinstance(table, dict) or not table:
        raise CheckpointError(f'expected "weight_map" from tensors to shards in {what}', found=shown(table))
    for shard in {str(shard): shard for shard in table.values()}.values():
        check_shard_name(shard, what)
    metadata = index.get("metadata")
    total = metadata.get("total_size") if isinstance(metadata, dict) else None
    return table, total if isinstance(total, int) and not isinstance(total, bool) else None


@dataclass(frozen=True)
class Weights:
    """The weight files of a checkpoint; without an index, only their names."""

    shards: tuple[str, ...]
    """File names."""
    listed: Mapping[str, str] | None = None
    """Shard by tensor, as the index lists them."""
    total_size: int | None = None
    """Bytes of all tensors, as the index says."""
    index: tuple[bytes, FileFacts] | None = None
    """Content of the index."""


def find_weights(folder: Folder) -> Weights | None:
    """The files that hold the weights: the shards of the index, else model.safetensors; None if there are none.

    model.safetensors beside an index of other shards wins, as in transformers.

    Raises:
        CheckpointError: the index is damaged.
    """
    if folder.has(INDEX):
        data, facts = folder.read(INDEX, _MAX_INDEX_BYTES, one_name=True)
        table, total = read_index(data, facts.shown)
        shards = tuple(sorted(set(table.values())))
        if SINGLE in shards or not folder.has(SINGLE):
            return Weights(shards, table, total, (data, facts))
    if folder.has(SINGLE):
        return Weights((SINGLE,))
    return None
