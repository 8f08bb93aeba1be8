"""The files of an engine: how their headers are sealed, what those after the first are called, and each one mapped."""

from __future__ import annotations

import hashlib
import mmap
import os
import re
import weakref
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from ..errors import EngineError, LlmcError, ResourceError
from ..files.safetensors import TensorInfo, open_regular, parse_header, read_header_bytes
from .manifest import Manifest, Shard

MAX_HEADER_BYTES = 16 << 20
MAX_TENSORS = 200_000
"""Of all files together."""
SUFFIX = ".llmc"
OWNER, NUMBER = "llmc.engine", "llmc.shard"
"""Metadata of a file after the first: the engine's content digest, and "2 of 3"."""
_DIGITS = 8
"""Of the digest in a file's name."""
_NAME = re.compile(rf"(.+)-[0-9a-f]{{{_DIGITS}}}-[0-9]{{5}}-of-[0-9]{{5}}{re.escape(SUFFIX)}")
_NAMED = 8
"""Files that an error names."""
_AGAIN = "copy or build it again"


@dataclass(frozen=True)
class Seal:
    """The digest of a header inside the header: at a fixed place, so that it is read before any JSON."""

    key: str

    @property
    def mark(self) -> bytes:
        """The first bytes of a header with this seal."""
        return b'{"__metadata__":{"%s":"' % self.key.encode()

    def stated(self, raw: bytes) -> str:
        """The digest that a header with this mark states."""
        return raw[len(self.mark) : len(self.mark) + 64].decode("latin-1")

    def digest(self, raw: bytes) -> str:
        """SHA-256 of a header with this mark, with the characters of its own digest replaced by zeros."""
        return hashlib.sha256(self.mark + b"0" * 64 + raw[len(self.mark) + 64 :]).hexdigest()

    def put(self, raw: bytes) -> bytes:
        """The header with its digest filled in."""
        return self.mark + self.digest(raw).encode() + raw[len(self.mark) + 64 :]


FIRST, LATER = Seal("llmc.sha256"), Seal("llmc.shard.sha256")
"""Of the file that a user names, which has the manifest, and of the others."""


def suffixes(shards: Sequence[Shard]) -> list[str]:
    """How the names of an engine's files after the first end.

    The digits are a digest of their headers, so of the engine's content and of how it is split: a file's name stands
    for its bytes, and no build replaces a file of another engine.
    """
    digits = hashlib.sha256("\n".join(shard.sha256 for shard in shards).encode()).hexdigest()[:_DIGITS]
    count = len(shards) + 1
    return [f"-{digits}-{number:05}-of-{count:05}{SUFFIX}" for number in range(2, count + 1)]


def shard_path(first: Path, suffix: str) -> Path:
    """The path of the file with this suffix, as a build names it."""
    return first.with_name(first.name.removesuffix(SUFFIX) + suffix)


def is_shard_of(first: Path, name: str) -> bool:
    """True if a build of `first` could have given this name to a file after it."""
    found = _NAME.fullmatch(name)
    return found is not None and found[1] == first.name.removesuffix(SUFFIX)


def is_shard_name(name: str) -> bool:
    """True if it is the name of a file after the first of some engine."""
    return _NAME.fullmatch(name) is not None


def find(first: Path, shards: Sequence[Shard]) -> list[Path]:
    """The files after the first: beside it, or beside the file that it links to. A renamed first file finds them too.

    Raises:
        EngineError: files are missing; names them.
    """
    folders = [(near, _names(near.parent)) for near in dict.fromkeys((first, first.resolve()))]
    found: list[Path] = []
    missing: list[tuple[str, int]] = []
    for shard, suffix in zip(shards, suffixes(shards), strict=True):
        named = [near.with_name(name) for near, names in folders for name in names if name.endswith(suffix)]
        exact = [path for path in named if path in [shard_path(near, suffix) for near, _ in folders]]
        if named:
            found.append((exact or named)[0])
        else:
            missing.append((suffix, shard.bytes))
    if missing:
        stem = _NAME.fullmatch(found[0].name) if found else None  # the first file alone may have been renamed
        like = first.with_name(stem[1]) if stem else first
        absent = [f"{shard_path(like, suffix).name} of {size} bytes" for suffix, size in missing[:_NAMED]]
        more = f" and {len(missing) - _NAMED} more" if len(missing) > _NAMED else ""
        raise EngineError(
            f"cannot open {first} without {len(missing)} of its {len(shards) + 1} files",
            found=f"no {', '.join(absent)}{more}",
            fix="copy all files of the engine into one folder",
        )
    return found


def _names(folder: Path) -> list[str]:
    with suppress(OSError):
        return sorted(name for name in os.listdir(folder) if is_shard_name(name))
    return []


def owned(first: Path, manifest: Manifest) -> Iterator[Path]:
    """The files after the first that stand where a build has put them, and are of this engine: their seals say so."""
    shards = manifest.shards or ()
    for shard, suffix in zip(shards, suffixes(shards), strict=True):
        path = shard_path(first, suffix)
        with suppress(LlmcError), open_regular(path, error=EngineError) as (fd, size):
            raw = read_header_bytes(fd, size, what=str(path), error=EngineError, max_bytes=MAX_HEADER_BYTES)
            if raw.startswith(LATER.mark) and LATER.stated(raw) == shard.sha256:
                yield path


class Part:
    """A file of an open engine, whose header was checked. Its descriptor is closed with it, or when it is dropped."""

    def __init__(self, path: Path, seal: Seal, error: type[LlmcError], before: Sequence[Part] = ()) -> None:
        """Check size and header of the file that comes after those `before` it.

        Raises:
            error: the file is damaged.
            EngineError: it cannot be opened, or is not what was asked for.
        """
        self.path = path
        self._seal = seal
        what = str(path)
        with open_regular(path, error=EngineError) as (fd, size):
            self._facts = os.fstat(fd)
            raw = read_header_bytes(fd, size, what=what, error=error, max_bytes=MAX_HEADER_BYTES)
            if not raw.startswith(seal.mark):
                raise _other(path, seal, raw, error)
            self.digest = seal.stated(raw)
            if self.digest != seal.digest(raw):
                found = f"another digest over its {len(raw)} bytes: the file is damaged or cut off"
                raise error(f"expected the header of {path} to match its digest", found=found, fix=_AGAIN)
            count = sum(len(one.infos) for one in before)
            header = parse_header(
                raw, size, what=what, error=error, max_tensors=MAX_TENSORS, in_order=True, before=count
            )
            self._fd = os.dup(fd)
        self._release = weakref.finalize(self, os.close, self._fd)
        self.bytes, self.metadata = size, header.metadata
        self.infos = header.tensors
        if before:
            self.infos = {name: replace(info, file=len(before)) for name, info in self.infos.items()}
        self._array = np.empty(0, np.uint8)

    def map(self) -> None:
        """Map the file.

        Raises:
            ResourceError: the system refuses.
        """
        try:
            self._map = mmap.mmap(self._fd, self.bytes, prot=mmap.PROT_READ)
        except OSError as problem:
            found = str(problem.strerror)
            raise ResourceError(f"cannot map {self.path} of {self.bytes} bytes", found=found) from problem
        self._array = np.frombuffer(self._map, np.uint8)

    def close(self) -> None:
        """Close the file; views that are still in use keep their bytes mapped."""
        self._release()
        self._array = np.empty(0, np.uint8)

    @property
    def is_open(self) -> bool:
        return self._release.alive

    @property
    def fileno(self) -> int:
        """The descriptor, until the file is closed."""
        return self._fd

    def view(self, info: TensorInfo) -> np.ndarray:
        """The bytes of a tensor of this file, read-only."""
        return self._array[info.offset : info.offset + info.nbytes]

    def expect(self, runs: Iterable[tuple[int, int]]) -> None:
        """Have the system read these runs of pages now, and later no more than each page that is touched."""
        if hasattr(mmap, "MADV_RANDOM"):
            self._map.madvise(mmap.MADV_RANDOM)
            for start, stop in runs:
                self._map.madvise(mmap.MADV_WILLNEED, start, min(stop, self.bytes) - start)

    def drop_pages(self) -> None:
        """Return the mapped pages to the system; later reads fault them in again from the file."""
        if hasattr(mmap, "MADV_DONTNEED"):
            self._map.madvise(mmap.MADV_DONTNEED)

    def moved(self) -> os.stat_result | None:
        """The file's facts, if size, mtime or ctime are others than those that were noted last, else None."""
        now = os.fstat(self._fd)
        return None if _times(now) == _times(self._facts) else now

    def note(self, facts: os.stat_result) -> None:
        """Take these facts as those of the unchanged file."""
        self._facts = facts

    def same_header(self, now: os.stat_result) -> bool:
        """True if size and header are what they were."""
        if now.st_size == self.bytes:
            with suppress(EngineError):
                raw = read_header_bytes(
                    self._fd, self.bytes, what=str(self.path), error=EngineError, max_bytes=MAX_HEADER_BYTES
                )
                return self._seal.stated(raw) == self._seal.digest(raw) == self.digest
        return False

    def touched(self, now: os.stat_result) -> bool:
        """True if the file has another mtime."""
        return now.st_mtime_ns != self._facts.st_mtime_ns


def demand_shard(part: Part, number: int, manifest: Manifest, damage: type[LlmcError]) -> None:
    """Check that a file is the one that the manifest lists.

    Raises:
        damage: it is longer or shorter.
        EngineError: it is of another engine, or has another place in this one.
    """
    shards = manifest.shards or ()
    shard = shards[number - 2]
    wanted = {OWNER: manifest.content_digest, NUMBER: f"{number} of {len(shards) + 1}"}
    stated = {key: text for key, text in part.metadata.items() if key != LATER.key}
    if stated != wanted or part.digest != shard.sha256:
        of = f"file {stated.get(NUMBER)} of engine {stated.get(OWNER)}"[:120]
        raise EngineError(
            f"expected {part.path} as file {wanted[NUMBER]} of engine {manifest.content_digest}",
            found=of if stated != wanted else "another header, as of the same engine split at another size",
            fix="copy all files of the engine into one folder again",
        )
    if part.bytes != shard.bytes:
        raise damage(
            f"expected {part.path} to have {shard.bytes} bytes", found=f"{part.bytes} bytes", fix="copy it again"
        )


def _times(facts: os.stat_result) -> tuple[int, int, int]:
    return facts.st_size, facts.st_mtime_ns, facts.st_ctime_ns


def _other(path: Path, seal: Seal, raw: bytes, error: type[LlmcError]) -> LlmcError:
    """Why a file's header does not begin as it should."""
    if seal is LATER:
        return error(
            f"expected {path} as a further file of an engine", found="a header that begins otherwise", fix=_AGAIN
        )
    asked = f"expected {path} as an engine of llmc"
    if not raw.startswith(LATER.mark):
        fix = "llmc build CHECKPOINT -o OUT.llmc, if this is a checkpoint"
        return error(asked, found="a header that begins otherwise", fix=fix)
    named, fix = _NAME.fullmatch(path.name), "the first one, which has the manifest"
    if named:
        bare, usual = path.with_name(named[1]), path.with_name(f"{named[1]}{SUFFIX}")
        fix = f"the first one, {bare if bare.is_file() and not usual.is_file() else usual}"
    return EngineError(asked, found="a file of an engine that is not its first", fix=fix)
