"""SHA-256 of parts of files on all cores: an engine is checked as fast as the machine can hash, in bounded memory."""

from __future__ import annotations

import hashlib
import os
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

from ..machine import cpu_count

CHUNK = 16 << 20
_PIECE = 1 << 20  # small enough to stay in a core's cache between the read and the hash
_buffers = threading.local()


@dataclass(frozen=True)
class ByteRange:
    """`nbytes` of a file from `offset`."""

    offset: int
    nbytes: int


def chunks(offset: int, nbytes: int) -> tuple[ByteRange, ...]:
    """The ranges a tensor's digests are taken of: 16 MiB each, the last one shorter; one empty range for no bytes."""
    starts = range(0, max(nbytes, 1), CHUNK)
    return tuple(ByteRange(offset + start, min(CHUNK, nbytes - start)) for start in starts)


def sha256_range(fd: int, part: ByteRange) -> str:
    """Hex digest of a part of an open file; of what is there, if the file ends early. OSError if it cannot be read."""
    if not hasattr(_buffers, "piece"):
        _buffers.piece = memoryview(bytearray(_PIECE))
    digest, done = hashlib.sha256(), 0
    while done < part.nbytes:
        got = os.preadv(fd, [_buffers.piece[: min(_PIECE, part.nbytes - done)]], part.offset + done)
        if not got:
            break
        digest.update(_buffers.piece[:got])  # lets the other threads run
        done += got
    return digest.hexdigest()


def sha256_ranges(fd: int, parts: Sequence[ByteRange], advance: Callable[[int], None]) -> list[str]:
    """Hex digests of many parts, hashed by one thread per CPU; `advance` is told the bytes of each finished part."""

    def one(part: ByteRange) -> str:
        digest = sha256_range(fd, part)
        advance(part.nbytes)
        return digest

    with ThreadPoolExecutor(cpu_count()) as pool:
        return list(pool.map(one, parts))
