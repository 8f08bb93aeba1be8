"""Uploads weights from the engine's file to the GPU in one pass: reads, hashes and copies them at the same time.

A thread reads each 16 MiB chunk of a stored tensor once into pinned memory and hashes it there. A chunk with the right
digest is then copied to every weight that contains a part of it. Weights whose bytes are not stored in the file in the
right order are computed on the host, from tensors checked the same way.

A rank's weights are slices, and a rank reads its own bytes only. So a chunk of which it has a part is read in part, and
a slice of columns is computed from the mapped file; both without a digest, which is of whole chunks.
"""

from __future__ import annotations

import ctypes
import errno
import hashlib
import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass

import numpy as np

from ..engine_file.bind import evaluate_weight
from ..engine_file.file import EngineFile
from ..errors import EngineError, ResourceError
from ..files.hashing import CHUNK, ByteRange, chunks
from ..machine import cpu_count
from ..progress import NO_PROGRESS, Progress
from .driver import Driver, keep
from .placement import Placement, Segment

_PIECE = 1 << 20
"""Bytes per read: few enough to stay in a core's cache until they are hashed."""
_SPARE = 4
"""Staging slots in addition to those being filled, for copies in flight."""


@dataclass(frozen=True)
class _Chunk:
    """A chunk of a stored tensor, or a part of it that a rank has."""

    label: str
    file: int
    """Its place among the engine's files."""
    part: ByteRange
    digest: str | None
    """None of a part."""
    copies: tuple[tuple[int, int, int], ...]
    """Copies to make: first byte in what is read, bytes, offset in the weights' allocation."""


def upload(
    engine: EngineFile, placement: Placement, base: int, driver: Driver, progress: Progress = NO_PROGRESS
) -> None:
    """Fill the weights' allocation at `base`; returns when every byte has been checked and copied.

    Raises:
        EngineError: bytes do not match their digest; names the tensor.
        ResourceError: the file cannot be read, or a driver call fails.
    """
    jobs = list(_chunks(engine, placement))
    total = sum(job.part.nbytes for job in jobs)
    with progress.stage("weights", total) as advance, ExitStack() as cleanup:
        staging = Staging(driver, len(jobs), cleanup)
        staging.stream_files(engine, jobs, base, advance)
        for name, (expr, offset) in placement.computed.items():
            staging.send(evaluate_weight(expr, engine.tensor, initializer=name), base + offset)


class Staging:
    """A ring of pinned slots of one chunk each, and the stream that copies from them; `cleanup` waits for copies."""

    def __init__(self, driver: Driver, jobs: int, cleanup: ExitStack) -> None:
        self._driver = driver
        self._threads = max(1, min(cpu_count(), jobs))
        self._used = 0
        self._stream = keep(cleanup, driver.stream(), driver.drop_stream)
        count = max(1, min(self._threads + _SPARE, jobs))
        self._base = keep(cleanup, driver.allocate_host(count * CHUNK, "loading weights"), driver.free_host)
        self._copied = [keep(cleanup, driver.event(), driver.drop_event) for _ in range(count)]
        cleanup.callback(driver.wait, self._stream)

    def stream_files(self, engine: EngineFile, jobs: list[_Chunk], base: int, advance: Callable[[int], None]) -> None:
        """Read, check and copy chunks; each thread reads one chunk at a time."""
        waiting: deque[tuple[_Chunk, int, Future[str | None]]] = deque()

        def finish() -> None:
            job, slot, digest = waiting.popleft()
            with _readable(engine):
                matches = digest.result() == job.digest or job.digest is None
            if not matches:
                found = f"{job.label} (bytes {job.part.offset} to {job.part.offset + job.part.nbytes})"
                fix = "copy or build the engine again"
                path = engine.parts[job.file].path
                raise EngineError(f"expected bytes in {path} that match their digests", found=found, fix=fix)
            for start, nbytes, offset in job.copies:
                self._driver.copy_in(base + offset, self._address(slot) + start, nbytes, self._stream)
            self._driver.record(self._copied[slot], self._stream)
            advance(job.part.nbytes)

        with ThreadPoolExecutor(self._threads) as pool:
            for job in jobs:
                if len(waiting) == self._threads:
                    finish()
                slot = self._slot()
                file = engine.parts[job.file].fileno
                waiting.append((job, slot, pool.submit(_read, file, job, self._view(slot))))
            while waiting:
                finish()

    def send(self, array: np.ndarray, target: int) -> None:
        """Copy a computed weight."""
        flat = np.ascontiguousarray(array).reshape(-1).view(np.uint8)
        for start in range(0, flat.size, CHUNK):
            part, slot = flat[start : start + CHUNK], self._slot()
            np.frombuffer(self._view(slot), np.uint8)[: part.size] = part
            self._driver.copy_in(target + start, self._address(slot), part.size, self._stream)
            self._driver.record(self._copied[slot], self._stream)

    def _slot(self) -> int:
        """The least recently used slot; waits until its copy is done."""
        slot = self._used % len(self._copied)
        if self._used >= len(self._copied):
            self._driver.wait_event(self._copied[slot])
        self._used += 1
        return slot

    def _address(self, slot: int) -> int:
        return self._base + slot * CHUNK

    def _view(self, slot: int) -> memoryview:
        return memoryview((ctypes.c_ubyte * CHUNK).from_address(self._address(slot))).cast("B")


@contextmanager
def _readable(engine: EngineFile) -> Iterator[None]:
    try:
        yield
    except OSError as problem:
        raise ResourceError(f"cannot read {engine.path}", found=str(problem.strerror)) from problem


def _read(file: int, job: _Chunk, into: memoryview) -> str | None:
    """Read a part of the file into a slot, or less at its end; returns the digest of the bytes, if there is one."""
    digest, done, part = None if job.digest is None else hashlib.sha256(), 0, job.part
    while done < part.nbytes:
        piece = into[done : min(done + _PIECE, part.nbytes)]
        got = os.preadv(file, [piece], part.offset + done)
        if not got:
            break
        if digest is not None:
            digest.update(piece[:got])  # lets the other threads run
        done += got
    if digest is not None:
        return digest.hexdigest()
    if done < part.nbytes:
        raise OSError(errno.EIO, "it ends too early")
    return None


def _chunks(engine: EngineFile, placement: Placement) -> Iterator[_Chunk]:
    """Every chunk to read, in the order of the files."""
    wanted: dict[str, list[Segment]] = {}
    for segment in placement.segments:
        wanted.setdefault(segment.tensor, []).append(segment)
    for name, info in engine.tensors.items():
        if name not in placement.whole and name not in wanted:
            continue
        parts = chunks(info.offset, info.nbytes)
        for index, (part, digest) in enumerate(zip(parts, engine.manifest.tensors[name], strict=True)):
            first = part.offset - info.offset
            label = f"tensor {name!r} chunk {index + 1} of {len(parts)}"
            copies = tuple(_copies(wanted.get(name, ()), first, first + part.nbytes))
            spans = [(0, part.nbytes)] if name in placement.whole else _spans(copies)
            if spans == [(0, part.nbytes)]:
                yield _Chunk(label, info.file, part, digest, copies)
                continue
            for start, stop in spans:
                own = tuple((at - start, nbytes, to) for at, nbytes, to in copies if start <= at < stop)
                yield _Chunk(label, info.file, ByteRange(part.offset + start, stop - start), None, own)


def _copies(segments: Iterable[Segment], first: int, last: int) -> Iterator[tuple[int, int, int]]:
    """The copies of a tensor's bytes [first, last): first byte in the chunk, bytes, offset in the allocation."""
    for segment in segments:
        start, stop = max(first, segment.start), min(last, segment.stop)
        if start < stop:
            yield start - first, stop - start, segment.offset + start - segment.start


def _spans(copies: Iterable[tuple[int, int, int]]) -> list[tuple[int, int]]:
    """What the copies cover, from and to, without what they overlap."""
    spans: list[tuple[int, int]] = []
    for start, nbytes, _ in sorted(copies):
        if spans and start <= spans[-1][1]:
            spans[-1] = spans[-1][0], max(spans[-1][1], start + nbytes)
        else:
            spans.append((start, start + nbytes))
    return spans
