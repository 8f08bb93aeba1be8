"""The memory that ranks of one host share: an anonymous file, mapped in parts, of which nothing stays when they end."""

from __future__ import annotations

import mmap
import os
import secrets
from collections.abc import Sequence
from dataclasses import dataclass
from enum import IntEnum

import numpy as np

from ...errors import ResourceError
from .communicator import Check
from .semaphores import STRIDE, Semaphores

HEAD = 64
"""Bytes of a slot before its data: the stamp."""
SLOT = 512 * 1024
"""Bytes of data in a slot of a collective."""
RING_SLOT, RING = 1 << 20, 16
"""Bytes of data in a slot of a pair, and slots: what one rank can send before the other receives."""
_SLOT_BYTES, _RING_SLOT_BYTES = SLOT + mmap.PAGESIZE, RING_SLOT + mmap.PAGESIZE
_NONCE = 32


class Signal(IntEnum):
    """The semaphores of an ordered pair of ranks, source and target."""

    TURN = 0
    """The source has written a piece of a collective."""
    FILLED = 1
    """The source has filled a slot of the ring."""
    FREE = 2
    """The target has emptied one."""
    BARRIER = 3


@dataclass(frozen=True)
class _Layout:
    """Where things lie. Pages that nobody writes take no memory, so there is a place for every pair."""

    ranks: int

    @property
    def slots(self) -> int:
        """Behind a page with the nonce and the semaphores."""
        size = self.ranks**2 * len(Signal) * STRIDE
        return mmap.PAGESIZE + -(-size // mmap.PAGESIZE) * mmap.PAGESIZE

    @property
    def rings(self) -> int:
        return self.slots + self.ranks * 2 * _SLOT_BYTES

    @property
    def bytes(self) -> int:
        return self.rings + self.ranks**2 * RING * _RING_SLOT_BYTES


class SharedMemory:
    """One process's view of the memory."""

    def __init__(self, file: int, ranks: int, check: Check, *, spin: bool) -> None:
        """`file` is the descriptor of a file that `create` made, and is this object's from now on."""
        self.file, self.ranks = file, ranks
        self._layout = _Layout(ranks)
        self._head = self._map(0, self._layout.slots)
        self.signals = Semaphores(self._head.ctypes.data + mmap.PAGESIZE, check, spin=spin)

    @property
    def nonce(self) -> str:
        """By which two processes know that they opened the same memory."""
        return self._head[:_NONCE].tobytes().hex()

    def signal(self, kind: Signal, source: int, target: int) -> int:
        """The index of a semaphore."""
        return (source * self.ranks + target) * len(Signal) + kind

    def slots(self, rank: int) -> Sequence[np.ndarray]:
        """u8 [HEAD + SLOT] twice: what a rank writes in the turns of its TP group."""
        both = self._map(self._layout.slots + rank * 2 * _SLOT_BYTES, 2 * _SLOT_BYTES)
        return [both[i * _SLOT_BYTES :][: HEAD + SLOT] for i in range(2)]

    def ring(self, source: int, target: int) -> Sequence[np.ndarray]:
        """u8 [HEAD + RING_SLOT], RING times: messages of one rank to another."""
        size = RING * _RING_SLOT_BYTES
        ring = self._map(self._layout.rings + (source * self.ranks + target) * size, size)
        return [ring[i * _RING_SLOT_BYTES :][: HEAD + RING_SLOT] for i in range(RING)]

    def close(self) -> None:
        """Close the file; a mapping goes with its last array."""
        if self.file >= 0:
            os.close(self.file)
            self.file = -1

    def _map(self, start: int, size: int) -> np.ndarray:
        return np.frombuffer(mmap.mmap(self.file, size, offset=start), np.uint8)

    def prepare(self) -> None:
        """Write the nonce and make the semaphores: done once, by the process that made the file."""
        self._head[:_NONCE] = np.frombuffer(secrets.token_bytes(_NONCE), np.uint8)
        for pair in range(self.ranks**2):
            for kind in Signal:
                self.signals.create(pair * len(Signal) + kind, RING if kind is Signal.FREE else 0)


def create(ranks: int) -> int:
    """The descriptor of new shared memory, ready for all ranks.

    Raises:
        ResourceError: the system has none (only Linux does).
    """
    if not hasattr(os, "memfd_create"):
        raise ResourceError("cannot share memory between ranks", found="a system without memfd_create", fix="Linux")
    file = os.memfd_create("llmc-ranks", os.MFD_CLOEXEC)
    try:
        os.ftruncate(file, _Layout(ranks).bytes)
        SharedMemory(file, ranks, lambda: None, spin=False).prepare()
    except BaseException:
        os.close(file)
        raise
    return file


def reopen(path: str, ranks: int) -> int:
    """A descriptor of the memory that another process of this host made; `path` is /proc/PID/fd/N.

    Raises:
        OSError: there is no such file, or another one.
    """
    file = os.open(path, os.O_RDWR | os.O_CLOEXEC)
    if os.fstat(file).st_size != _Layout(ranks).bytes:
        os.close(file)
        raise OSError(f"another file is at {path}")
    return file
