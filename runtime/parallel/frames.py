"""Messages between ranks on a socket: a JSON header and raw arrays, bounded and strictly read; no pickle."""

from __future__ import annotations

import socket
import threading
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from math import prod
from typing import Any

import numpy as np

from ..dtypes import DTYPES
from ..errors import ResourceError, shown
from ..files.strict_json import canonical, loads

LARGEST_HEADER = 1 << 20
LARGEST_ARRAYS = 1 << 32
"""Bytes of all arrays of a message."""
_STRANGER = 4096
"""Bytes of a header of a peer that has not said the token."""
_MOST_ARRAYS, _MOST_AXES = 256, 8
_DTYPES = {DTYPES[name].numpy.str for name in DTYPES}
_LENGTH = 4
_BEAT = bytes(_LENGTH)
"""A header of no bytes: the sender lives."""


@dataclass(frozen=True)
class Frame:
    """One message."""

    kind: str
    header: Mapping[str, Any] = field(default_factory=dict)
    arrays: Sequence[np.ndarray] = ()
    rank: int = -1
    """The sender, known from its socket."""


def encode(frame: Frame) -> list[memoryview]:
    """The bytes of a message; the arrays are not copied."""
    arrays = [np.asarray(array, order="C") for array in frame.arrays]
    table = [[array.dtype.str, list(array.shape)] for array in arrays]
    header = canonical({"kind": frame.kind, "header": frame.header, "arrays": table})
    if len(header) > LARGEST_HEADER:
        raise ResourceError("cannot send a message to a rank", found=f"a header of {len(header)} bytes")
    views = [memoryview(array.reshape(-1).data).cast("B") for array in arrays if array.size]
    return [memoryview(len(header).to_bytes(_LENGTH, "little") + header), *views]


class _Reader:
    """Makes messages of bytes as they come: memory is taken for what was announced and is within bounds."""

    def __init__(self) -> None:
        self.trusted = False
        """The peer is a rank of this job: it may send arrays and long headers."""
        self._steps = self._read()
        self._target = next(self._steps)

    def fill(self, source: socket.socket) -> Sequence[Frame | None]:
        """What a socket has now: messages, None for a sign of life.

        Raises:
            EOFError: the peer has closed, or its process is gone.
            ResourceError: it does not speak as a rank does.
        """
        found: list[Frame | None] = []
        while True:
            try:
                count = source.recv_into(self._target)
            except BlockingIOError:
                return found
            except OSError:
                count = 0
            if count == 0:
                if found:  # the end comes again
                    return found
                raise EOFError
            self._target = self._target[count:]
            while not len(self._target):
                step = next(self._steps)
                if isinstance(step, memoryview):
                    self._target = step
                else:
                    found.append(step)

    def _read(self) -> Iterator[Any]:
        """Yields places for bytes, and what was read: a Frame or None."""
        while True:
            length = bytearray(_LENGTH)
            yield memoryview(length)
            size = int.from_bytes(length, "little")
            if size == 0:
                yield None
                continue
            most = LARGEST_HEADER if self.trusted else _STRANGER
            if size > most:
                raise _malformed(f"a header of {size} bytes")
            header = bytearray(size)
            yield memoryview(header)
            kind, told, table = _checked(loads(bytes(header), what="a message of a rank", error=ResourceError))
            if table and not self.trusted:
                raise _malformed("arrays")
            arrays = [np.empty(shape, dtype) for dtype, shape in table]
            for array in arrays:
                if array.size:
                    yield memoryview(array.reshape(-1).data).cast("B")
            yield Frame(kind, told, tuple(arrays))


def _checked(value: Any) -> tuple[str, Mapping[str, Any], list[tuple[np.dtype, tuple[int, ...]]]]:
    match value:
        case {"kind": str(kind), "header": dict(told), "arrays": list(table), **more} if not more:
            pass
        case _:
            raise _malformed(shown(value))
    if len(table) > _MOST_ARRAYS:
        raise _malformed(f"{len(table)} arrays")
    arrays, total = [], 0
    for entry in table:
        match entry:
            case [str(dtype), list(shape)] if (
                dtype in _DTYPES
                and len(shape) <= _MOST_AXES
                and all(type(length) is int and 0 <= length <= LARGEST_ARRAYS for length in shape)
            ):
                total += prod(shape) * np.dtype(dtype).itemsize
                arrays.append((np.dtype(dtype), tuple(shape)))
            case _:
                raise _malformed(f"the array {shown(entry)}")
    if total > LARGEST_ARRAYS:
        raise _malformed(f"{total} bytes of arrays")
    return kind, told, arrays


def _malformed(found: str) -> ResourceError:
    return ResourceError("expected a message of a rank", found=found)


class Connection:
    """A socket to another rank that never blocks: what its buffer cannot take waits here."""

    def __init__(self, peer: socket.socket, rank: int) -> None:
        peer.setblocking(False)
        if peer.family in (socket.AF_INET, socket.AF_INET6):
            peer.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.socket, self.rank = peer, rank
        self.reader = _Reader()
        self.silent = 0.0
        """Seconds that this process has waited for a sign of life."""
        self.heard = False
        self.name = f"rank {rank}"
        """With host and process, once they are known."""
        self._waiting = deque[memoryview]()
        self._lock = threading.Lock()

    def send(self, frame: Frame) -> None:
        """Send a message, now or, by the thread that calls `flush`, later."""
        parts = encode(frame)
        with self._lock:
            queued = bool(self._waiting)
            self._waiting.extend(parts)
            if not queued:
                self._flush()
            for i, part in enumerate(self._waiting):  # the caller may write to its arrays again
                if not part.readonly:
                    self._waiting[i] = memoryview(bytes(part))

    def beat(self) -> None:
        """Send a sign of life; not behind messages that wait, which are one."""
        with self._lock:
            if not self._waiting:
                self._waiting.append(memoryview(_BEAT))
                self._flush()

    def flush(self) -> bool:
        """Send what waits; true if all is sent."""
        with self._lock:
            return self._flush()

    @property
    def waiting(self) -> int:
        """Bytes that wait."""
        with self._lock:
            return sum(map(len, self._waiting))

    def close(self) -> None:
        self.socket.close()

    def _flush(self) -> bool:
        while self._waiting:
            try:
                sent = self.socket.sendmsg([*self._waiting][:16])
            except BlockingIOError:
                return False
            except OSError:  # the reader sees the end of the connection
                self._waiting.clear()
                break
            while self._waiting and sent >= len(self._waiting[0]):
                sent -= len(self._waiting.popleft())
            if sent:
                self._waiting[0] = self._waiting[0][sent:]
        return True
