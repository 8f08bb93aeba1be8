"""Writes engine files atomically: after any failure or crash, the path holds the old engine or a complete new one."""

from __future__ import annotations

import errno
import fcntl
import hashlib
import json
import os
import re
import secrets
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path

import numpy as np

from ...runtime.engine_file.bind import Stored
from ...runtime.engine_file.file import MAGIC, MAX_HEADER_BYTES, header_digest
from ...runtime.engine_file.layout import ALIGNMENT, PADDING, RESERVED, content_digest, is_tensor_name
from ...runtime.engine_file.manifest import Manifest, is_section_name
from ...runtime.errors import LlmcError, ResourceError
from ...runtime.files.hashing import CHUNK, chunks, sha256_range
from ...runtime.files.safetensors import TensorInfo
from ...runtime.machine import cpu_count
from ...runtime.numbers import RAW_DTYPE

NO_LOCKS = (errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOSYS, errno.EINVAL)
"""Errors of a file system without locks."""
_NO_RESERVING = (errno.EOPNOTSUPP, errno.ENOSYS, errno.EINVAL)
"""Errors of a file system that cannot reserve space."""

Groups = Sequence[Sequence[Stored]]
"""All tensors in the order of the file; the tensors of a group are adjacent, without padding."""


def default_reserve(groups: Groups) -> int:
    """Bytes reserved for the header: lineage, bindings of a few profiles, and a digest of 64 digits per 16 MiB."""
    digests = [len(chunks(0, tensor.nbytes)) for group in groups for tensor in group]
    return (128 << 10) + (2 << 10) * len(digests) + 72 * sum(digests)


class EngineWriter:
    """Writes one engine: tensors in any order, each from its start to its end, then sections, then `commit`.

    A context manager: leaving it without a commit removes everything it wrote. One thread at a time may write a tensor.
    Other threads hash weights from the page cache, so memory does not grow with the engine.

    Every method raises ResourceError for a full disk, a quota, a limit or a failing device.
    """

    def __init__(self, path: Path, groups: Groups, *, reserve_header: int | None = None) -> None:
        """Delete leftovers of killed builds of `path`, then reserve the space of the header and all tensors."""
        reserve = default_reserve(groups) if reserve_header is None else reserve_header
        self._path = Path(path)
        self._data_start = -(-(8 + reserve) // ALIGNMENT) * ALIGNMENT
        self._infos = _layout(groups, self._data_start)
        self._weights = {name: info for name, info in self._infos.items() if not name.startswith(RESERVED)}
        self._end = max((info.offset + info.nbytes for info in self._infos.values()), default=self._data_start)
        self._written = dict.fromkeys(self._weights, 0)
        self._digests: dict[str, list[Future[str]]] = {name: [] for name in self._weights}
        self._sections: dict[str, str] = {}
        self.content_digest = ""
        """The same on every machine for the same build; `commit` sets it."""
        self._fd = -1
        with self._disk():
            _refuse_odd_target(self._path)
            sweep(self._path)
            self._temp, self._fd = _create(self._path)
        self._pool = ThreadPoolExecutor(cpu_count())
        try:
            with self._disk():
                _reserve(self._fd, self._end)
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
        self._pwrite(data, info.offset + done)
        self._written[name] = done = done + len(data)
        ready = done // CHUNK if done < info.nbytes else -(-done // CHUNK)
        for part in chunks(info.offset, info.nbytes)[len(self._digests[name]) : ready]:
            self._digests[name].append(self._pool.submit(sha256_range, self._fd, part))

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
                got = os.preadv(self._fd, [target[done:].data], info.offset + start * row + done)
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
        self._pwrite(data, self._end)
        self._infos[RESERVED + name] = TensorInfo(RESERVED + name, "U8", (len(data),), self._end, len(data))
        self._sections[name] = hashlib.sha256(data).hexdigest()
        self._end += len(data)

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
        text = replace(manifest, content_digest=self.content_digest).to_json()
        Manifest.from_json(text, what=str(self._path))  # never write an engine that the reader refuses
        self._pwrite(self._header(text), 0)
        with self._disk():
            os.fsync(self._fd)
            os.rename(self._temp, self._path)
            self._release()
            _fsync_folder(self._path.parent)
        advance(1)
        return self._path

    def abort(self) -> None:
        """Remove the file; does nothing after a commit."""
        if self._fd < 0:
            return
        with suppress(OSError):  # the next build deletes what remains
            self._temp.unlink()
        self._release()

    def __enter__(self) -> EngineWriter:
        return self

    def __exit__(self, *_: object) -> None:
        self.abort()

    def _release(self) -> None:
        self._pool.shutdown(cancel_futures=True)
        os.close(self._fd)
        self._fd = -1

    def _pwrite(self, data: bytes | memoryview, offset: int) -> None:
        view = memoryview(data)
        with self._disk():
            while view:
                done = os.pwrite(self._fd, view, offset)
                view, offset = view[done:], offset + done

    def _header(self, manifest: bytes) -> bytes:
        """The first bytes of the file: length, then the header with its digest filled in, padded with spaces."""
        document: dict[str, object] = {"__metadata__": {"llmc.sha256": "0" * 64, "llmc": manifest.decode()}}
        for name, info in self._infos.items():
            begin = info.offset - self._data_start
            document[name] = {"dtype": info.dtype, "shape": info.shape, "data_offsets": [begin, begin + info.nbytes]}
        size = self._data_start - 8
        raw = json.dumps(document, separators=(",", ":"), ensure_ascii=False).encode().ljust(size)
        if len(raw) > min(size, MAX_HEADER_BYTES):
            found = f"{size} bytes reserved, at most {MAX_HEADER_BYTES}"
            raise LlmcError(f"cannot write a header of {len(raw)} bytes", found=found)
        place = len(MAGIC)
        return size.to_bytes(8, "little") + MAGIC + header_digest(raw).encode() + raw[place + 64 :]

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
                f"cannot write {self._path}, an engine of {self._end} bytes", found=found, fix=fix
            ) from problem


_FIXES = {
    errno.ENOSPC: "free some space, or choose a folder on another disk",
    errno.EDQUOT: "free some of your quota, or choose a folder on another disk",
    errno.EFBIG: "a higher limit on file sizes (ulimit -f), or a file system without it",
    errno.ENOENT: "mkdir -p for the folder of the engine",
}
"""What a user can do, by error number."""


def sweep(path: Path) -> tuple[Path, ...]:
    """Delete files that killed builds of `path` left, and return them; the file of a running build is locked."""
    pattern = re.compile(re.escape(f".{path.name}.") + r"[0-9]+\.[0-9a-f]{16}")
    found = [path.parent / name for name in sorted(os.listdir(path.parent)) if pattern.fullmatch(name)]
    return tuple(temp for temp in found if _delete_if_stale(temp))


def _delete_if_stale(temp: Path) -> bool:
    try:
        fd = os.open(temp, os.O_RDWR | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError:  # deleted already, or another user's
        return False
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        temp.unlink()
    except OSError:  # locked by a running build, renamed meanwhile, or on a file system without locks
        return False
    finally:
        os.close(fd)
    return True


def _create(path: Path) -> tuple[Path, int]:
    """Create and lock a new file next to `path`; retries if another build's `sweep` deleted it before the lock."""
    while True:
        temp = path.with_name(f".{path.name}.{os.getpid()}.{secrets.token_hex(8)}")
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


def _reserve(fd: int, size: int) -> None:
    """Reserve the space, so that a full disk is found before the work, not after it."""
    if hasattr(os, "posix_fallocate"):
        try:
            os.posix_fallocate(fd, 0, size)
            return
        except OSError as problem:
            if problem.errno not in _NO_RESERVING:
                raise
    os.ftruncate(fd, size)


def _refuse_odd_target(path: Path) -> None:
    """Refuse, before the work, a path that rename could not replace."""
    if path.exists() and not path.is_file():
        raise OSError(errno.EEXIST, "the path exists and is not a file")


def _fsync_folder(folder: Path) -> None:
    fd = os.open(folder, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def _free(folder: Path) -> str:
    try:
        facts = os.statvfs(folder)
    except OSError:
        return ""
    return f", {facts.f_bavail * facts.f_frsize} bytes free in {folder}"


def _layout(groups: Groups, data_start: int) -> dict[str, TensorInfo]:
    """Compute every offset before any weight is read; adds a padding tensor before each group that needs one."""
    infos: dict[str, TensorInfo] = {}
    at = data_start
    for index, group in enumerate(groups):
        if gap := -at % ALIGNMENT:
            name = f"{PADDING}{index + 1}"
            infos[name] = TensorInfo(name, "U8", (gap,), at, gap)
            at += gap
        for tensor in group:
            name, dtype = tensor.name, tensor.dtype
            if not is_tensor_name(name) or name in infos:
                raise ValueError(f"{name!r}: a plain tensor name that is still free")
            if at % RAW_DTYPE[dtype].itemsize:
                raise ValueError(f"{name}: {dtype} cannot lie at byte {at}: give it another group")
            infos[name] = TensorInfo(name, dtype, tensor.shape, at, tensor.nbytes)
            at += tensor.nbytes
    return infos
