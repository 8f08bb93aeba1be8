"""SHA-256 of parts of files on all cores, in bounded memory: checking an engine is limited by hashing alone."""

from __future__ import annotations

import hashlib
import os
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

from ..machine import cpu_count

CHUNK = 16 << 20
"""Bytes of a tensor per digest."""
_PIECE = 1 << 20
"""Bytes of a read: they stay in a core's cache until they are hashed."""
_buffers = threading.local()


@dataclass(frozen=True)
class ByteRange:
    """`nbytes` of a file from `offset`."""

    offset: int
    nbytes: int


def chunks(offset: int, nbytes: int) -> tuple[ByteRange, ...]:
    """The ranges of a tensor's digests: 16 MiB each, the last one shorter; an empty tensor has one empty range."""
    return tuple(
        ByteRange(offset + start, min(CHUNK, nbytes - start)) for start in range(0, chunk_count(nbytes) * CHUNK, CHUNK)
    )


def chunk_count(nbytes: int) -> int:
    """The number of digests of a tensor."""
    return max(1, -(-nbytes // CHUNK))


def sha256_range(fd: int, part: ByteRange) -> str:
    """Hex digest of a part of an open file; if the file ends early, of the bytes before its end.

    Raises:
        OSError: the file cannot be read.
    """
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
    """Hex digests of many parts, hashed by one thread per CPU; calls `advance` with the bytes of each finished part.

    Raises:
        OSError: the file cannot be read.
    """

    def one(part: ByteRange) -> str:
        digest = sha256_range(fd, part)
        advance(part.nbytes)
        return digest

    with ThreadPoolExecutor(cpu_count()) as pool:
        return list(pool.map(one, parts))
