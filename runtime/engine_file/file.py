"""Opens engine files: checks sizes, digest, schema and layout of the header before it maps the file."""

from __future__ import annotations

import hashlib
import mmap
import os
import weakref
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from ..errors import EngineError, LlmcError, ResourceError, VerifyError, nearest
from ..files.hashing import ByteRange, chunks, sha256_ranges
from ..files.outputs import FileKind
from ..files.safetensors import Header, TensorInfo, open_regular, parse_header, read_header, read_header_bytes
from ..files.strict_json import loads
from ..numbers import RAW_DTYPE
from ..progress import NO_PROGRESS, Progress
from .layout import PADDING, RESERVED, check_layout, content_digest
from .manifest import Manifest, Profile
from .no_engine import refuse_other
from .ranks import rank_profile

MAX_HEADER_BYTES = 16 << 20
MAX_TENSORS = 200_000
MAGIC = b'{"__metadata__":{"llmc.sha256":"'
"""The first bytes of every engine's header: they put its digest at a fixed place, which is read before any JSON."""
ENGINE = FileKind("an engine", ".llmc", MAGIC, offset=8)
_DIGEST_SIZE = 64


def header_digest(raw: bytes) -> str:
    """SHA-256 of a header that starts with MAGIC, with the characters of its own digest replaced by zeros."""
    end = len(MAGIC) + _DIGEST_SIZE
    return hashlib.sha256(MAGIC + b"0" * _DIGEST_SIZE + raw[end:]).hexdigest()


def read_unchecked(path: Path) -> dict[str, Any]:
    """The header of a file that `open` refuses because it is damaged or newer than this reader, for `inspect`.

    Keys: `bytes`, `metadata` (strings), `manifest` (unchecked JSON, or None), `tensors` (name -> dtype and shape).

    Raises:
        EngineError: the file is not a safetensors file.
    """
    header = read_header(path, error=EngineError, max_tensors=MAX_TENSORS, max_bytes=MAX_HEADER_BYTES)
    text = header.metadata.get("llmc")
    return {
        "bytes": header.file_bytes,
        "metadata": {key: value for key, value in header.metadata.items() if key != "llmc"},
        "manifest": None if text is None else loads(text, what=f"{path}: manifest", error=EngineError),
        "tensors": {name: {"dtype": info.dtype, "shape": list(info.shape)} for name, info in header.tensors.items()},
    }


def verify_engine(path: Path, progress: Progress = NO_PROGRESS) -> EngineFile:
    """Opens an engine and checks every byte of it.

    Raises:
        VerifyError: a part of the file is damaged (exit code 1); names the part.
        EngineError: the file cannot be opened, or is undamaged but not readable by this llmc.
    """
    return EngineFile._open(path, VerifyError, progress)


@dataclass(frozen=True)
class _Check:
    """A part of the file, its name in errors, and its expected digest."""

    label: str
    part: ByteRange
    digest: str


class EngineFile:
    """An open engine file: its manifest, and read-only views of its tensors in the mapped file."""

    def __init__(self, path: Path, fd: int, header: Header, manifest: Manifest, facts: os.stat_result) -> None:
        """Called by `open` with checked values, and the file's facts before any was read; duplicates the descriptor."""
        self.path = path
        self.manifest = manifest
        self.file_bytes = header.file_bytes
        self._infos = header.tensors
        self._profiles: dict[str, Profile] = {}
        self._text = header.metadata["llmc"]
        self._digest = header.metadata["llmc.sha256"]
        try:
            self._map = mmap.mmap(fd, header.file_bytes, prot=mmap.PROT_READ)
        except OSError as problem:
            found = str(problem.strerror)
            raise ResourceError(f"cannot map {path} of {header.file_bytes} bytes", found=found) from problem
        self._bytes = np.frombuffer(self._map, np.uint8)
        self._fd = os.dup(fd)
        self._facts = facts
        self._release = weakref.finalize(self, os.close, self._fd)

    @classmethod
    def open(
        cls, path: str | Path, *, verify: Literal["header", "full"] = "header", progress: Progress = NO_PROGRESS
    ) -> EngineFile:
        """Opens and checks an engine.

        "header" checks the header now and each section when it is read; "full" checks every byte now.

        Raises:
            EngineError: the file is damaged or no engine; names the tensor, section or key.
            ResourceError: the file cannot be mapped.
        """
        return cls._open(Path(path), EngineError, progress if verify == "full" else None)

    @classmethod
    def _open(cls, path: Path, damage: type[LlmcError], check_all: Progress | None) -> EngineFile:
        refuse_other(path, ENGINE)
        with open_regular(path, error=EngineError) as (fd, size):
            facts = os.fstat(fd)
            raw = read_header_bytes(fd, size, what=str(path), error=damage, max_bytes=MAX_HEADER_BYTES)
            if not raw.startswith(MAGIC):
                fix = "llmc build CHECKPOINT -o OUT.llmc, if this is a checkpoint"
                raise damage(f"expected {path} as an engine of llmc", found="a header that begins otherwise", fix=fix)
            stated = raw[len(MAGIC) : len(MAGIC) + _DIGEST_SIZE]
            if stated.decode("latin-1") != header_digest(raw):
                found = f"another digest over its {len(raw)} bytes: the file is damaged or cut off"
                raise damage(
                    f"expected the header of {path} to match its digest", found=found, fix="copy or build it again"
                )
            header = parse_header(raw, size, what=str(path), error=damage, max_tensors=MAX_TENSORS, in_order=True)
            for key in header.metadata:
                if key not in ("llmc", "llmc.sha256"):
                    raise EngineError(f"expected only llmc and llmc.sha256 in __metadata__ of {path}", found=repr(key))
            manifest = Manifest.from_json(header.metadata.get("llmc", ""), what=str(path))
            check_layout(header, manifest, str(path))
            engine = cls(path, fd, header, manifest, facts)
        try:
            if check_all is not None:
                engine.check_all(check_all, damage)
        except BaseException:
            engine.close()
            raise
        return engine

    @property
    def sections(self) -> tuple[str, ...]:
        """Names of the sections, without their prefix."""
        return tuple(self.manifest.sections)

    @property
    def tensors(self) -> Mapping[str, TensorInfo]:
        """The weights, in the order of the file."""
        return {name: info for name, info in self._infos.items() if not name.startswith(RESERVED)}

    def profile(self, name: str) -> Profile:
        """The profile of this name, or one rank of a profile: "cpu-tp2.rank-1".

        Raises:
            EngineError: there is none, or its section is damaged.
        """
        if name not in self._profiles:
            self._profiles[name] = rank_profile(name, self.manifest.profiles, self.section, str(self.path))
        return self._profiles[name]

    def tensor(self, name: str) -> np.ndarray:
        """A weight as a read-only view of the file in its canonical shape, in the raw dtype of `RAW_DTYPE`.

        Tensors of one group are views of adjacent bytes.

        Raises:
            EngineError: the name is unknown, or the engine is closed.
        """
        self._refuse_unknown("tensor", name, self.manifest.tensors)
        info = self._infos[name]
        return self._view(info).view(RAW_DTYPE[info.dtype]).reshape(info.shape)

    def section(self, name: str) -> bytes:
        """A section's bytes, checked against its digest.

        Raises:
            EngineError: the section is unknown or damaged, or the engine is closed.
        """
        self._refuse_unknown("section", name, self.manifest.sections)
        data = self._view(self._infos[RESERVED + name]).tobytes()
        if hashlib.sha256(data).hexdigest() != self.manifest.sections[name]:
            raise EngineError(
                f"expected section {name!r} of {self.path} to match its digest",
                found="damaged bytes",
                fix="copy or build the engine again",
            )
        return data

    def demand_unchanged(self) -> None:
        """Check that the file that is mapped holds what it held when it was opened; takes a microsecond.

        A file renamed over it, or its removal, changes nothing: the old one stays mapped. That, a link or another mode
        change its ctime; so does another engine copied over it with times put back, whose header differs. Another mtime
        alone may be a touch, as of the cache of engines: then every byte is checked, once.

        Raises:
            EngineError: it was written to, cut, or replaced in place.
        """
        if not self._release.alive:
            return
        now, then = os.fstat(self._fd), self._facts
        if _times(now) == _times(then):
            return
        if now.st_size == then.st_size:
            with suppress(EngineError):
                raw = read_header_bytes(
                    self._fd, now.st_size, what=str(self.path), error=EngineError, max_bytes=MAX_HEADER_BYTES
                )
                stated = raw[len(MAGIC) : len(MAGIC) + _DIGEST_SIZE].decode("latin-1")
                if stated == header_digest(raw) == self._digest:
                    if now.st_mtime_ns != then.st_mtime_ns:
                        self.check_all(error=EngineError)
                    self._facts = now
                    return
        raise EngineError(
            f"cannot go on with {self.path}: the file was changed since it was opened",
            found=f"{now.st_size} bytes, {then.st_size} before, and not what they were",
            fix="load it again; replace engines by rename, never by copying over",
        )

    def drop_pages(self) -> None:
        """Returns the mapped pages to the system; later reads fault them in again from the file."""
        if hasattr(mmap, "MADV_DONTNEED"):
            self._map.madvise(mmap.MADV_DONTNEED)

    def close(self) -> None:
        """Closes the file; views that are still in use keep their bytes mapped."""
        self._release()
        self._bytes = np.empty(0, np.uint8)

    def __enter__(self) -> EngineFile:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _view(self, info: TensorInfo) -> np.ndarray:
        self._refuse_closed()
        return self._bytes[info.offset : info.offset + info.nbytes]

    def _refuse_unknown(self, kind: str, name: str, known: Mapping[str, object]) -> None:
        if name not in known:
            raise EngineError(
                f"cannot find {kind} {name!r} in {self.path}", found=f"no such {kind}{nearest(name, known)}"
            )

    def _refuse_closed(self) -> None:
        if not self._release.alive:
            raise EngineError(f"cannot read {self.path}", found="the engine was closed")

    def _checks(self) -> Iterator[_Check]:
        for name, info in self._infos.items():
            whole = ByteRange(info.offset, info.nbytes)
            if name.startswith(PADDING):
                yield _Check(f"padding {name!r}", whole, hashlib.sha256(bytes(info.nbytes)).hexdigest())
            elif name.startswith(RESERVED):
                section = name.removeprefix(RESERVED)
                yield _Check(f"section {section!r}", whole, self.manifest.sections[section])
            else:
                parts = chunks(info.offset, info.nbytes)
                for index, (part, digest) in enumerate(zip(parts, self.manifest.tensors[name], strict=True)):
                    yield _Check(f"tensor {name!r} chunk {index + 1} of {len(parts)}", part, digest)

    def check_all(self, progress: Progress = NO_PROGRESS, error: type[LlmcError] = VerifyError) -> None:
        """Reads the whole file on all cores and compares every digest.

        Raises:
            error: the file is damaged; names up to eight tensors and chunks, sections or paddings.
            EngineError: the engine is closed.
            ResourceError: the file cannot be read.
        """
        self._refuse_closed()
        if content_digest(self._text, self.tensors) != self.manifest.content_digest:
            raise error(f"expected the manifest of {self.path} to match its content digest", found="another digest")
        checks = list(self._checks())
        with progress.stage("verify", sum(check.part.nbytes for check in checks)) as advance:
            try:
                found = sha256_ranges(self._fd, [check.part for check in checks], advance)
            except OSError as problem:
                raise ResourceError(f"cannot read {self.path}", found=str(problem.strerror)) from problem
        bad = [check for check, digest in zip(checks, found, strict=True) if check.digest != digest]
        if bad:
            named = [
                f"{check.label} (bytes {check.part.offset} to {check.part.offset + check.part.nbytes})" for check in bad
            ]
            rest = f" and {len(bad) - 8} more" if len(bad) > 8 else ""
            raise error(
                f"expected the bytes of {self.path} to match their digests",
                found=", ".join(named[:8]) + rest,
                fix="copy or build the engine again",
            )


def _times(facts: os.stat_result) -> tuple[int, int, int]:
    return facts.st_size, facts.st_mtime_ns, facts.st_ctime_ns
