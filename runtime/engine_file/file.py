"""Opens engines: checks sizes, digests, schema and layout of all their headers before it maps a file."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from ..errors import EngineError, LlmcError, ResourceError, VerifyError, nearest
from ..files.hashing import ByteRange, chunks, sha256_ranges
from ..files.outputs import FileKind
from ..files.safetensors import TensorInfo, read_header
from ..files.strict_json import loads
from ..numbers import RAW_DTYPE
from ..progress import NO_PROGRESS, Progress
from .bind import Expr
from .extents import extents, page_runs
from .layout import PADDING, RESERVED, check_layout, content_digest
from .manifest import Manifest, Profile
from .no_engine import refuse_other
from .ranks import rank_profile
from .shards import FIRST, LATER, MAX_HEADER_BYTES, MAX_TENSORS, SUFFIX, Part, demand_shard, find

ENGINE = FileKind("an engine", SUFFIX, FIRST.mark, offset=8)


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


def read_manifest(first: Path) -> Manifest:
    """The checked manifest of an engine's first file, whether its other files are there or not.

    Raises:
        EngineError: the file is damaged or no engine.
    """
    part = Part(first, FIRST, EngineError)
    try:
        return _manifest(part)
    finally:
        part.close()


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
    """An open engine: its manifest, and read-only views of its tensors in the mapped files; most have one file."""

    def __init__(self, path: Path, parts: Sequence[Part], manifest: Manifest) -> None:
        """Called by `open` with checked files, the one with the manifest first."""
        self.path = path
        self.manifest = manifest
        self.parts = tuple(parts)
        self.file_bytes = sum(part.bytes for part in parts)
        self._infos = {name: info for part in parts for name, info in part.infos.items()}
        self._text = parts[0].metadata["llmc"]
        self._profiles: dict[str, Profile] = {}

    @classmethod
    def open(
        cls, path: str | Path, *, verify: Literal["header", "full"] = "header", progress: Progress = NO_PROGRESS
    ) -> EngineFile:
        """Opens and checks an engine.

        "header" checks the headers now and each section when it is read; "full" checks every byte now.

        Raises:
            EngineError: the file is damaged or no engine; names the tensor, section or key.
            ResourceError: the file cannot be mapped.
        """
        return cls._open(Path(path), EngineError, progress if verify == "full" else None)

    @classmethod
    def _open(cls, path: Path, damage: type[LlmcError], check_all: Progress | None) -> EngineFile:
        refuse_other(path, ENGINE)
        parts = [Part(path, FIRST, damage)]
        try:
            manifest = _manifest(parts[0])
            for other in find(path, manifest.shards or ()):
                parts.append(Part(other, LATER, damage, parts))
                demand_shard(parts[-1], len(parts), manifest, damage)
            check_layout({str(part.path): part.infos for part in parts}, manifest)
            for part in parts:
                part.map()
            engine = cls(path, parts, manifest)
            if check_all is not None:
                engine.check_all(check_all, damage)
        except BaseException:
            for part in parts:
                part.close()
            raise
        return engine

    @property
    def sections(self) -> tuple[str, ...]:
        """Names of the sections, without their prefix."""
        return tuple(self.manifest.sections)

    @property
    def tensors(self) -> Mapping[str, TensorInfo]:
        """The weights, in the order of the files."""
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
        """A weight as a read-only view of its file in its canonical shape, in the raw dtype of `RAW_DTYPE`.

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
        """Check that the files that are mapped hold what they held when they were opened; takes a microsecond each.

        A file renamed over one, or its removal, changes nothing: the old one stays mapped. That, a link or another mode
        change its ctime; so does another engine copied over it with times put back, whose header differs. Another mtime
        alone may be a touch, as of the cache of engines: then every byte of the file is checked, once.

        Raises:
            EngineError: one was written to, cut, or replaced in place.
        """
        for part in self.parts if self._open_still else ():
            now = part.moved()
            if now is None:
                continue
            if not part.same_header(now) or (part.touched(now) and self._damage([part], lambda _: None)):
                raise EngineError(
                    f"cannot go on with {part.path}: the file was changed since it was opened",
                    found=f"{now.st_size} bytes, {part.bytes} before, and not what they were",
                    fix="load it again; replace engines by rename, never by copying over",
                )
            part.note(now)

    def expect(self, exprs: Iterable[Expr]) -> None:
        """Have the system read the bytes of these expressions, and of the rest no more than is touched."""
        for file, runs in page_runs(part for expr in exprs for part in extents(expr, self._infos)).items():
            self.parts[file].expect(runs)

    def drop_pages(self) -> None:
        """Returns the mapped pages to the system; later reads fault them in again from the files."""
        for part in self.parts:
            part.drop_pages()

    def close(self) -> None:
        """Closes the files; views that are still in use keep their bytes mapped."""
        for part in self.parts:
            part.close()

    def __enter__(self) -> EngineFile:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def _open_still(self) -> bool:
        return self.parts[0].is_open

    def _view(self, info: TensorInfo) -> np.ndarray:
        self._refuse_closed()
        return self.parts[info.file].view(info)

    def _refuse_unknown(self, kind: str, name: str, known: Mapping[str, object]) -> None:
        if name not in known:
            raise EngineError(
                f"cannot find {kind} {name!r} in {self.path}", found=f"no such {kind}{nearest(name, known)}"
            )

    def _refuse_closed(self) -> None:
        if not self._open_still:
            raise EngineError(f"cannot read {self.path}", found="the engine was closed")

    def _checks(self, part: Part) -> Iterator[_Check]:
        for name, info in part.infos.items():
            whole = ByteRange(info.offset, info.nbytes)
            if name.startswith(PADDING):
                yield _Check(f"padding {name!r}", whole, hashlib.sha256(bytes(info.nbytes)).hexdigest())
            elif name.startswith(RESERVED):
                section = name.removeprefix(RESERVED)
                yield _Check(f"section {section!r}", whole, self.manifest.sections[section])
            else:
                ranges = chunks(info.offset, info.nbytes)
                for index, (one, digest) in enumerate(zip(ranges, self.manifest.tensors[name], strict=True)):
                    yield _Check(f"tensor {name!r} chunk {index + 1} of {len(ranges)}", one, digest)

    def _damage(self, parts: Sequence[Part], advance: Callable[[int], None]) -> list[str]:
        """What is damaged in these files, by name and place."""
        bad: list[str] = []
        for part in parts:
            checks = list(self._checks(part))
            try:
                found = sha256_ranges(part.fileno, [check.part for check in checks], advance)
            except OSError as problem:
                raise ResourceError(f"cannot read {part.path}", found=str(problem.strerror)) from problem
            of = f" of {part.path.name}" if len(self.parts) > 1 else ""
            bad += [
                f"{check.label} (bytes {check.part.offset} to {check.part.offset + check.part.nbytes}{of})"
                for check, digest in zip(checks, found, strict=True)
                if check.digest != digest
            ]
        return bad

    def check_all(self, progress: Progress = NO_PROGRESS, error: type[LlmcError] = VerifyError) -> None:
        """Reads the whole engine on all cores and compares every digest.

        Raises:
            error: a file is damaged; names up to eight tensors and chunks, sections or paddings.
            EngineError: the engine is closed.
            ResourceError: a file cannot be read.
        """
        self._refuse_closed()
        if content_digest(self._text, self.tensors) != self.manifest.content_digest:
            raise error(f"expected the manifest of {self.path} to match its content digest", found="another digest")
        with progress.stage("verify", sum(info.nbytes for info in self._infos.values())) as advance:
            bad = self._damage(self.parts, advance)
        if bad:
            rest = f" and {len(bad) - 8} more" if len(bad) > 8 else ""
            raise error(
                f"expected the bytes of {self.path} to match their digests",
                found=", ".join(bad[:8]) + rest,
                fix="copy or build the engine again",
            )


def _manifest(first: Part) -> Manifest:
    for key in first.metadata:
        if key not in ("llmc", "llmc.sha256"):
            raise EngineError(f"expected only llmc and llmc.sha256 in __metadata__ of {first.path}", found=repr(key))
    return Manifest.from_json(first.metadata.get("llmc", ""), what=str(first.path))
