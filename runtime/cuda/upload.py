"""Uploads weights from the engine's file to the GPU in one pass: reads, hashes and copies them at the same time.

A thread reads each 16 MiB chunk of a stored tensor once into pinned memory and hashes it there. A chunk with the right
digest is then copied to every weight that contains a part of it. Weights whose bytes are not stored in the file in the
right order are computed on the host, from tensors checked the same way.
"""

from __future__ import annotations

import ctypes
import hashlib
import math
import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass

import numpy as np

from ..engine_file.bind import Concat, Expr, Reshape, Slice, Stored, evaluate_weight, from_json, stored
from ..engine_file.file import EngineFile
from ..errors import EngineError, ResourceError
from ..files.hashing import CHUNK, ByteRange, chunks
from ..machine import cpu_count
from ..numbers import RAW_DTYPE
from ..plan.budget import aligned
from ..plan.plan import Plan
from ..progress import NO_PROGRESS, Progress
from .driver import Driver, keep

_PIECE = 1 << 20
"""Bytes per read: few enough to stay in a core's cache until they are hashed."""
_SPARE = 4
"""Staging slots in addition to those being filled, for copies in flight."""


@dataclass(frozen=True)
class Segment:
    """Bytes [start, stop) of a stored tensor, and their offset in the weights' allocation."""

    tensor: str
    start: int
    stop: int
    offset: int


@dataclass(frozen=True)
class Placement:
    """The layout of the weights in their one allocation; equal weight expressions are stored once."""

    offsets: Mapping[str, int]
    """By name of the weight."""
    segments: tuple[Segment, ...]
    """Parts that are copied from the file."""
    computed: Mapping[str, tuple[Expr, int]]
    """Weights that the host computes: their expression and offset."""
    reads: frozenset[str]
    """Names of the stored tensors that are read."""
    bytes: int
    """Of the whole allocation."""


@dataclass(frozen=True)
class _Chunk:
    """A chunk of a stored tensor."""

    label: str
    file: int
    """Its place among the engine's files."""
    part: ByteRange
    digest: str
    copies: tuple[tuple[int, int, int], ...]
    """Copies to make: first byte in the chunk, bytes, offset in the weights' allocation."""


def place_weights(engine: EngineFile, profile: str, plan: Plan) -> Placement:
    """Lay out every weight of the plan.

    Raises:
        EngineError: a weight has no binding, or its binding has another size or reads tensors that do not exist.
    """
    bindings, tensors = engine.profile(profile).weights, engine.tensors
    known: dict[Expr, int] = {}
    offsets: dict[str, int] = {}
    segments: list[Segment] = []
    computed: dict[str, tuple[Expr, int]] = {}
    end = 0
    for name, tensor in plan.tensors.items():
        if tensor.kind != "weight":
            continue
        if name not in bindings:
            raise EngineError(
                f"cannot load weight {name!r} of {engine.path}", found="no binding", fix="build the engine again"
            )
        expr = from_json(bindings[name])
        nbytes = _bytes(expr)
        if nbytes != tensor.bytes({}):
            found = f"{nbytes} bytes, {expr.dtype} {list(expr.shape)}"
            wanted = f"weight {name!r} of {tensor.bytes({})} bytes"
            raise EngineError(f"expected {wanted} in {engine.path}", found=found, fix="build the engine again")
        for leaf in stored(expr):
            info = tensors.get(leaf.name)
            if info is None or (info.dtype, info.shape) != (leaf.dtype, leaf.shape):
                found = "no such tensor" if info is None else f"{info.dtype} {list(info.shape)}"
                wanted = f"tensor {leaf.name!r} as {leaf.dtype} {list(leaf.shape)} for weight {name!r}"
                raise EngineError(f"expected {wanted} in {engine.path}", found=found, fix="build the engine again")
        if expr not in known:
            known[expr] = end
            parts = file_segments(expr, end)
            if parts is None:
                computed[name] = expr, end
            segments += parts or ()
            end += aligned(nbytes)
        offsets[name] = known[expr]
    read = {segment.tensor for segment in segments} | {s.name for expr, _ in computed.values() for s in stored(expr)}
    return Placement(offsets, tuple(segments), computed, frozenset(read), end)


def file_segments(expr: Expr, offset: int) -> list[Segment] | None:
    """The parts of the file whose bytes in order are the expression's; None if bytes must be computed or reordered."""
    match expr:
        case Stored(name=name):
            return [Segment(name, 0, _bytes(expr), offset)]
        case Reshape(of=of):
            return file_segments(of, offset)
        case Slice(of=of, axis=axis, start=start, stop=stop) if math.prod(of.shape[:axis]) == 1:
            row = _bytes(of) // of.shape[axis] if of.shape[axis] else 0
            return [Segment(of.name, start * row, stop * row, offset)]
        case Concat(parts=parts, axis=axis) if math.prod(expr.shape[:axis]) == 1:
            joined: list[Segment] = []
            for part in parts:
                found = file_segments(part, offset)
                if found is None:
                    return None
                joined += found
                offset += _bytes(part)
            return joined
    return None


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
        waiting: deque[tuple[_Chunk, int, Future[str]]] = deque()

        def finish() -> None:
            job, slot, digest = waiting.popleft()
            with _readable(engine):
                matches = digest.result() == job.digest
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
                waiting.append((job, slot, pool.submit(_read, file, job.part, self._view(slot))))
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


def _read(file: int, part: ByteRange, into: memoryview) -> str:
    """Read a part of the file into a slot, or less at the end of the file; returns the digest of the bytes read."""
    digest, done = hashlib.sha256(), 0
    while done < part.nbytes:
        piece = into[done : min(done + _PIECE, part.nbytes)]
        got = os.preadv(file, [piece], part.offset + done)
        if not got:
            break
        digest.update(piece[:got])  # lets the other threads run
        done += got
    return digest.hexdigest()


def _chunks(engine: EngineFile, placement: Placement) -> Iterator[_Chunk]:
    """Every chunk to read, in the order of the files."""
    wanted: dict[str, list[Segment]] = {}
    for segment in placement.segments:
        wanted.setdefault(segment.tensor, []).append(segment)
    for name, info in engine.tensors.items():
        if name not in placement.reads:
            continue
        parts = chunks(info.offset, info.nbytes)
        for index, (part, digest) in enumerate(zip(parts, engine.manifest.tensors[name], strict=True)):
            first = part.offset - info.offset
            label = f"tensor {name!r} chunk {index + 1} of {len(parts)}"
            yield _Chunk(
                label, info.file, part, digest, tuple(_copies(wanted.get(name, ()), first, first + part.nbytes))
            )


def _copies(segments: Iterable[Segment], first: int, last: int) -> Iterator[tuple[int, int, int]]:
    """The copies of a tensor's bytes [first, last): first byte in the chunk, bytes, offset in the allocation."""
    for segment in segments:
        start, stop = max(first, segment.start), min(last, segment.stop)
        if start < stop:
            yield start - first, stop - start, segment.offset + start - segment.start


def _bytes(expr: Expr) -> int:
    return math.prod(expr.shape) * RAW_DTYPE[expr.dtype].itemsize
