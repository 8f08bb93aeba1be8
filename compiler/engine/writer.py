"""Writes engines atomically: after any failure or crash, the path holds the old engine or a complete new one."""

from __future__ import annotations

import errno
import hashlib
import json
import os
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from ...runtime.engine_file.layout import RESERVED, content_digest
from ...runtime.engine_file.manifest import SHARDS, Manifest, Shard, is_section_name
from ...runtime.engine_file.shards import FIRST, LATER, MAX_HEADER_BYTES, NUMBER, OWNER, Seal, shard_path, suffixes
from ...runtime.errors import LlmcError, ResourceError
from ...runtime.files.hashing import CHUNK, chunks, sha256_range
from ...runtime.files.safetensors import TensorInfo
from ...runtime.machine import cpu_count
from ...runtime.numbers import RAW_DTYPE
from . import atomic
from .layout import FileLayout, Groups, MaxShardSize, default_reserve, lay_out


@dataclass
class _File:
    """A file that is being written under its temporary name; `end` is its size so far."""

    temp: Path
    fd: int
    layout: FileLayout
    end: int


class EngineWriter:
    """Writes one engine: tensors in any order, each from its start to its end, then sections, then `commit`.

    A context manager: leaving it without a commit removes everything it wrote. One thread at a time may write a tensor.
    Other threads hash weights from the page cache, so memory does not grow with the engine.

    Every method raises ResourceError for a full disk, a quota, a limit or a failing device.
    """

    def __init__(
        self,
        path: Path,
        groups: Groups,
        *,
        sections: int = 0,
        reserve_header: int | None = None,
        most: MaxShardSize | None = None,
    ) -> None:
        """Delete leftovers of killed builds of `path`, then reserve the space of the headers and all tensors.

        There will be so many `sections`, or a hundred at most.

        Raises:
            RecipeError: the tensors cannot be split into files of at most the size `most`.
        """
        reserve = default_reserve(groups, sections) if reserve_header is None else reserve_header
        self._path = Path(path)
        layouts = lay_out(groups, reserve, most)
        self._most = most
        self._infos = {name: info for one in layouts for name, info in one.infos.items()}
        self._weights = {name: info for name, info in self._infos.items() if not name.startswith(RESERVED)}
        self._written = dict.fromkeys(self._weights, 0)
        self._digests: dict[str, list[Future[str]]] = {name: [] for name in self._weights}
        self._sections: dict[str, str] = {}
        self.content_digest = ""
        """The same on every machine for the same build; `commit` sets it, and `paths`."""
        self.paths: tuple[Path, ...] = ()
        """All files, the engine's own first."""
        self._bytes = sum(one.end for one in layouts)
        self._files: list[_File] = []
        self._pool = ThreadPoolExecutor(cpu_count())
        try:
            with self._disk():
                atomic.refuse_odd_target(self._path)
                atomic.sweep(self._path)
                for one in layouts:
                    self._files.append(_File(*atomic.create(self._path), one, one.end))
                    atomic.reserve(self._files[-1].fd, one.end)
        except BaseException:
            self.abort()
            raise

    def write(self, name: str, offset: int, data: np.ndarray | bytes | memoryview) -> None:
        """Append to tensor `name`; `offset` is the number of its bytes written so far.

        An array must have the tensor's raw dtype, or be bytes (uint8).

        Raises:
            ValueError: order, dtype or size do not fit.
            ResourceError: the disk is full or fails.
        """
        info = self._weights[name]
        if isinstance(data, np.ndarray):
            if data.dtype not in (RAW_DTYPE[info.dtype], np.uint8):
                raise ValueError(f"{name}: expected {RAW_DTYPE[info.dtype]} for {info.dtype}, found {data.dtype}")
            data = np.ascontiguousarray(data).reshape(-1).view(np.uint8).data
        done = self._written[name]
        if offset != done or done + len(data) > info.nbytes:
            raise ValueError(
                f"{name}: {len(data)} bytes at {offset} do not follow the {done} of {info.nbytes} written so far"
            )
        file = self._files[info.file]
        self._pwrite(file, data, info.offset + done)
        self._written[name] = done = done + len(data)
        ready = done // CHUNK if done < info.nbytes else -(-done // CHUNK)
        for part in chunks(info.offset, info.nbytes)[len(self._digests[name]) : ready]:
            self._digests[name].append(self._pool.submit(sha256_range, file.fd, part))

    def read(self, name: str, start: int, stop: int) -> np.ndarray:
        """Rows [start, stop) of a tensor written so far (-1: to the end), a new raw array.

        A scalar counts as one row and is returned as a scalar.

        Raises:
            ValueError: the rows are not written yet.
            ResourceError: the disk fails.
        """
        info = self._weights[name]
        first, *rest = info.shape or (1,)
        stop = first if stop < 0 else stop
        row = info.nbytes // max(first, 1)
        if not 0 <= start <= stop <= first or stop * row > self._written[name]:
            raise ValueError(f"{name}: rows {start} to {stop} are not written yet")
        rows = np.empty((stop - start, *rest), RAW_DTYPE[info.dtype])
        target, done = rows.reshape(-1).view(np.uint8), 0
        with self._disk():
            while done < len(target):
                got = os.preadv(self._files[info.file].fd, [target[done:].data], info.offset + start * row + done)
                if not got:
                    raise OSError(errno.EIO, os.strerror(errno.EIO))
                done += got
        return rows if info.shape else rows.reshape(())

    def section(self, name: str, data: bytes) -> None:
        """Append a section.

        Raises:
            ValueError: the name is not plain, or taken.
            ResourceError: the disk is full or fails.
        """
        if not is_section_name(name) or name in self._sections:
            raise ValueError(f"section {name!r}: a plain name that is still free")
        first = self._files[0]
        self._pwrite(first, data, first.end)
        first.layout.infos[RESERVED + name] = TensorInfo(RESERVED + name, "U8", (len(data),), first.end, len(data))
        self._sections[name] = hashlib.sha256(data).hexdigest()
        first.end += len(data)
        self._bytes += len(data)

    @property
    def steps(self) -> int:
        """How often `commit` calls `advance`: for each tensor's digest, and for the file on the disk."""
        return len(self._weights) + 1

    def commit(self, manifest: Manifest, advance: Callable[[int], None] = lambda _: None) -> Path:
        """Fill in the manifest's digests, make the file durable, and rename it to its path, replacing the old engine.

        If only the last step fails (fsync of the folder), the new engine is in place but may not survive a power cut.

        Raises:
            ValueError: a tensor is incomplete.
            LlmcError: the header does not fit into its reserved space.
            ResourceError: the disk is full or fails.
        """
        missing = [name for name, info in self._weights.items() if self._written[name] != info.nbytes]
        if missing:
            raise ValueError(f"tensors not written to the end: {missing[:8]}")
        with self._disk():
            digests: dict[str, tuple[str, ...]] = {}
            for name, parts in self._digests.items():
                digests[name] = tuple(done.result() for done in parts)
                advance(1)
        empty = (hashlib.sha256().hexdigest(),)
        manifest = replace(
            manifest, sections=dict(self._sections), tensors={name: parts or empty for name, parts in digests.items()}
        )
        self.content_digest = content_digest(manifest.to_json(), self._weights)
        manifest = replace(manifest, content_digest=self.content_digest)
        shards = tuple(self._seal_shard(number) for number in range(2, len(self._files) + 1))
        if shards:
            manifest = replace(manifest, required_features=(*manifest.required_features, SHARDS), shards=shards)
        text = manifest.to_json()
        Manifest.from_json(text, what=str(self._path))  # never write an engine that the reader refuses
        self._seal(self._files[0], FIRST, {"llmc": text.decode()})
        paths = [shard_path(self._path, suffix) for suffix in suffixes(shards)]
        with self._disk():
            for file in self._files:
                os.fsync(file.fd)
            first, *others = [file.temp for file in self._files]
            atomic.place(self._path, first, dict(zip(others, paths, strict=True)))
        self._release()
        self.paths = (self._path, *paths)
        advance(1)
        return self._path

    def abort(self) -> None:
        """Remove the files; does nothing after a commit."""
        for file in self._files:
            with suppress(OSError):  # the next build deletes what remains
                file.temp.unlink()
        self._release()

    def __enter__(self) -> EngineWriter:
        return self

    def __exit__(self, *_: object) -> None:
        self.abort()

    def _release(self) -> None:
        self._pool.shutdown(cancel_futures=True)
        while self._files:
            os.close(self._files.pop().fd)

    def _pwrite(self, file: _File, data: bytes | memoryview, offset: int) -> None:
        view = memoryview(data)
        with self._disk():
            while view:
                done = os.pwrite(file.fd, view, offset)
                view, offset = view[done:], offset + done

    def _seal_shard(self, number: int) -> Shard:
        """Write the header of a file after the first; returns what the manifest says of it."""
        file = self._files[number - 1]
        metadata = {OWNER: self.content_digest, NUMBER: f"{number} of {len(self._files)}"}
        return Shard(file.end, self._seal(file, LATER, metadata))

    def _seal(self, file: _File, seal: Seal, metadata: dict[str, str]) -> str:
        """Write a header: its length, then JSON with its digest filled in, padded with spaces; returns the digest."""
        start = file.layout.data_start
        document: dict[str, object] = {"__metadata__": {seal.key: "0" * 64, **metadata}}
        for name, info in file.layout.infos.items():
            begin = info.offset - start
            document[name] = {"dtype": info.dtype, "shape": info.shape, "data_offsets": [begin, begin + info.nbytes]}
        size = start - 8
        raw = json.dumps(document, separators=(",", ":"), ensure_ascii=False).encode().ljust(size)
        if len(raw) > min(size, MAX_HEADER_BYTES):
            found = f"{size} bytes reserved, at most {MAX_HEADER_BYTES}"
            raise LlmcError(f"cannot write a header of {len(raw)} bytes", found=found)
        if self._most is not None and file.end > self._most.bytes:
            found = f"{file.end} bytes, most of {self._most.sections} of sections"
            raise LlmcError(f"cannot write a file of at most {self._most.bytes} bytes", found=found)
        sealed = seal.put(raw)
        self._pwrite(file, size.to_bytes(8, "little") + sealed, 0)
        return seal.stated(sealed)

    @contextmanager
    def _disk(self) -> Iterator[None]:
        """Turn errors of the file system into ResourceError, with bytes needed and free."""
        try:
            yield
        except OSError as problem:
            folder = self._path.parent
            found = f"{problem.strerror}{_free(folder)}"
            fix = _FIXES.get(problem.errno or 0, "another folder for the engine")
            raise ResourceError(
                f"cannot write {self._path}, an engine of {self._bytes} bytes", found=found, fix=fix
            ) from problem


_FIXES = {
    errno.ENOSPC: "free some space, or choose a folder on another disk",
    errno.EDQUOT: "free some of your quota, or choose a folder on another disk",
    errno.EFBIG: "a higher limit on file sizes (ulimit -f), or a file system without it",
    errno.ENOENT: "mkdir -p for the folder of the engine",
}
"""What a user can do, by error number."""


def _free(folder: Path) -> str:
    try:
        facts = os.statvfs(folder)
    except OSError:
        return ""
    return f", {facts.f_bavail * facts.f_frsize} bytes free in {folder}"
