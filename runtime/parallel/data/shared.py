"""The data plane of ranks on one host: through memory that they share."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from enum import IntEnum

import numpy as np

from ...errors import EngineError
from .communicator import add_in_order, columns, even, flat, pieces, rows
from .memory import HEAD, RING, RING_SLOT, SLOT, SharedMemory, Signal

_TWO_ROUNDS = 64 * 1024
"""Bytes from which a sum of four and more shards is made part by part: then each rank reads 2 bytes of memory for one
that it sums, not as many as there are shards."""


class _Kind(IntEnum):
    SUM = 1
    GATHER = 2
    SCATTER = 3
    MESSAGE = 4


class SharedGroup:
    """Collectives of a TP group, piece by piece, so that memory is bounded whatever the arrays are.

    A turn: each rank writes a piece into one of its two slots, posts a semaphore for each other rank, waits for theirs,
    and reads their slots. Two slots that alternate are enough: a rank writes turn k + 2 after it has got the posts of
    turn k + 1 of all others, and each of them posts turn k + 1 only after it has read turn k, whose slot is reused.
    """

    def __init__(self, memory: SharedMemory, members: Sequence[int], rank: int) -> None:
        """`members` are the ranks of the job that form the group, in the order of shards."""
        self._signals = memory.signals
        self._others = [i for i, member in enumerate(members) if member != rank]
        self._shard, self._shards = members.index(rank), len(members)
        self._to = [memory.signal(Signal.TURN, rank, member) for member in members]
        self._from = [memory.signal(Signal.TURN, member, rank) for member in members]
        self._slots = [memory.slots(member) for member in members]
        self._turn = 0

    def all_reduce(self, x: np.ndarray, out: np.ndarray) -> None:
        data, total = flat(x), flat(out)
        if self._shards >= 4 and x.nbytes >= _TWO_ROUNDS:
            sizes = even(data.size, self._shards)
            part = np.empty(sizes[self._shard], x.dtype)
            self.reduce_scatter(data, 0, sizes, part)
            self.all_gather(part, 0, sizes, total)
            return
        step = SLOT // x.itemsize
        stamp = _stamp(_Kind.SUM, x.nbytes)
        for start in range(0, data.size, step):
            piece = data[start : start + step]
            np.copyto(self._own(stamp)[: piece.nbytes].view(x.dtype), piece)
            parts = [slot[: piece.nbytes].view(x.dtype) for slot in self._exchange(stamp)]
            add_in_order(parts, total[start : start + step])

    def all_gather(self, x: np.ndarray, axis: int, sizes: Sequence[int], out: np.ndarray) -> None:
        data, whole = rows(x, axis), rows(out, axis)
        stamp = _stamp(_Kind.GATHER, out.nbytes)
        for parts in self._parts(columns(out, axis, sizes), whole.shape[0], SLOT // x.itemsize):
            height, own = parts[self._shard][0], parts[self._shard][1]
            start = self._start(columns(out, axis, sizes))
            piece = data[height, own.start - start : own.stop - start]
            _block(self._own(stamp), piece.shape, x.dtype)[...] = piece
            for slot, (high, wide) in zip(self._exchange(stamp), parts, strict=True):
                target = whole[high, wide]
                np.copyto(target, _block(slot, target.shape, x.dtype))

    def reduce_scatter(self, x: np.ndarray, axis: int, sizes: Sequence[int], out: np.ndarray) -> None:
        whole, data = rows(x, axis), rows(out, axis)
        stamp = _stamp(_Kind.SCATTER, x.nbytes)
        ends = columns(x, axis, sizes)
        start = self._start(ends)
        share = SLOT // self._shards // HEAD * HEAD  # of a slot, for the part of each shard
        for parts in self._parts(ends, whole.shape[0], share // x.itemsize):
            own = self._own(stamp)
            for shard, (high, wide) in enumerate(parts):
                piece = whole[high, wide]
                _block(own[shard * share :], piece.shape, x.dtype)[...] = piece
            high, wide = parts[self._shard]
            target = data[high, wide.start - start : wide.stop - start]
            offset = self._shard * share
            add_in_order([_block(s[offset:], target.shape, x.dtype) for s in self._exchange(stamp)], target)

    def _start(self, ends: Sequence[int]) -> int:
        return ends[self._shard - 1] if self._shard else 0

    def _parts(self, ends: Sequence[int], height: int, room: int) -> Iterator[list[tuple[slice, slice]]]:
        """For each turn, the rectangle of every shard in the whole: at most `room` elements, equal on all ranks."""
        starts = (0, *ends[:-1])
        for high, wide in pieces(height, max(e - s for s, e in zip(starts, ends, strict=True)), room):
            yield [
                (high, slice(min(s + wide.start, e), min(s + wide.stop, e))) for s, e in zip(starts, ends, strict=True)
            ]

    def _own(self, stamp: int) -> np.ndarray:
        """The data of this rank's slot of this turn, stamped."""
        slot = self._slots[self._shard][self._turn & 1]
        slot[:8].view(np.int64)[0] = stamp
        return slot[HEAD:]

    def _exchange(self, stamp: int) -> list[np.ndarray]:
        """The data of every shard's slot, when all have written; the turn is over."""
        for other in self._others:
            self._signals.post(self._to[other])
        turn, self._turn = self._turn & 1, self._turn + 1
        for other in self._others:
            self._signals.wait(self._from[other])
            _demand_stamp(self._slots[other][turn], stamp)
        return [slots[turn][HEAD:] for slots in self._slots]


class SharedLink:
    """Messages between two ranks, through a ring of slots each way; a long message takes several."""

    def __init__(self, memory: SharedMemory, rank: int, peer: int) -> None:
        self._signals = memory.signals
        self._out, self._in = memory.ring(rank, peer), memory.ring(peer, rank)
        self._sent = self._received = 0
        (self._out_filled, self._out_free, self._post), (self._in_filled, self._in_free, self._wait) = (
            [memory.signal(kind, *pair) for kind in (Signal.FILLED, Signal.FREE, Signal.BARRIER)]
            for pair in ((rank, peer), (peer, rank))
        )

    def send(self, x: np.ndarray) -> None:
        stamp, data = _stamp(_Kind.MESSAGE, x.nbytes), flat(x).view(np.uint8)
        for start in range(0, max(1, data.size), RING_SLOT):
            self._signals.wait(self._out_free)
            slot = self._out[self._sent % RING]
            piece = data[start : start + RING_SLOT]
            slot[:8].view(np.int64)[0] = stamp
            slot[HEAD : HEAD + piece.size] = piece
            self._sent += 1
            self._signals.post(self._out_filled)

    def recv(self, out: np.ndarray) -> None:
        stamp, data = _stamp(_Kind.MESSAGE, out.nbytes), flat(out).view(np.uint8)
        for start in range(0, max(1, data.size), RING_SLOT):
            self._signals.wait(self._in_filled)
            slot = self._in[self._received % RING]
            piece = data[start : start + RING_SLOT]
            _demand_stamp(slot, stamp)
            piece[:] = slot[HEAD : HEAD + piece.size]
            self._received += 1
            self._signals.post(self._in_free)

    def post(self) -> None:
        self._signals.post(self._post)

    def wait(self) -> None:
        self._signals.wait(self._wait)


def _stamp(kind: _Kind, size: int) -> int:
    """What a slot is a piece of: ranks that disagree would read each other's bytes as something else."""
    return kind << 56 | size


def _demand_stamp(slot: np.ndarray, wanted: int) -> None:
    found = int(slot[:8].view(np.int64)[0])
    if found != wanted:
        raise EngineError("cannot exchange arrays between ranks", found=f"{_said(found)} where {_said(wanted)} is due")


def _said(stamp: int) -> str:
    return f"{stamp & (1 << 56) - 1} bytes of a {_Kind(stamp >> 56).name.lower()}"


def _block(data: np.ndarray, shape: tuple[int, ...], dtype: np.dtype) -> np.ndarray:
    """The first bytes of a slot's data as an array."""
    size = dtype.itemsize
    for length in shape:
        size *= length
    return data[:size].view(dtype).reshape(shape)
