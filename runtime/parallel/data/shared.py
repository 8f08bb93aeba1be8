"""The data plane of ranks on one host: through memory that they share."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from .memory import HEAD, RING, RING_SLOT, SLOT, SharedMemory, Signal
from .turns import Kind, demand_stamp, flat, stamp


class SharedExchange:
    """The exchange of a TP group, piece by piece, so that memory is bounded whatever the arrays are.

    In a turn each rank writes into one of its two slots, posts a semaphore for each other rank, waits for theirs, and
    reads their slots. Two slots that alternate are enough: a rank writes turn k + 2 after it has got the posts of turn
    k + 1 of all others, and each of them posts turn k + 1 only after it has read turn k, whose slot is used again.
    """

    room = SLOT

    def __init__(self, memory: SharedMemory, members: Sequence[int], rank: int) -> None:
        """`members` are the ranks of the job that form the group, in the order of shards."""
        self._signals = memory.signals
        self._shard = members.index(rank)
        self._others = [i for i, member in enumerate(members) if member != rank]
        self._to = [memory.signal(Signal.TURN, rank, member) for member in members]
        self._from = [memory.signal(Signal.TURN, member, rank) for member in members]
        slots = [memory.slots(member) for member in members]
        self._stamps = [[slot[:8].view(np.int64) for slot in both] for both in zip(*slots, strict=True)]
        self._data = [[slot[HEAD:] for slot in both] for both in zip(*slots, strict=True)]
        """Of each turn, odd or even, and each shard."""
        self.share = SLOT // len(members) // HEAD * HEAD
        self._turn = 0

    def give(self, stamp: int, piece: np.ndarray, shapes: Sequence[tuple[int, ...]]) -> Sequence[np.ndarray]:
        data = self._data[self._turn]
        np.copyto(_block(data[self._shard], piece.shape, piece.dtype), piece)
        self._all(stamp)
        return [_block(one, shape, piece.dtype) for one, shape in zip(data, shapes, strict=True)]

    def deal(self, stamp: int, pieces: Sequence[np.ndarray]) -> Sequence[np.ndarray]:
        data = self._data[self._turn]
        for shard, piece in enumerate(pieces):
            np.copyto(_block(data[self._shard][shard * self.share :], piece.shape, piece.dtype), piece)
        self._all(stamp)
        mine, start = pieces[self._shard], self._shard * self.share
        return [_block(one[start:], mine.shape, mine.dtype) for one in data]

    def _all(self, stamp: int) -> None:
        """Say that this rank has written, wait until all have; the turn is over."""
        stamps, self._turn = self._stamps[self._turn], 1 - self._turn
        stamps[self._shard][0] = stamp
        for other in self._others:
            self._signals.post(self._to[other])
        for other in self._others:
            self._signals.wait(self._from[other])
            demand_stamp(int(stamps[other][0]), stamp)


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
        mark, data = stamp(Kind.MESSAGE, x.nbytes), flat(x).view(np.uint8)
        for start in range(0, max(1, data.size), RING_SLOT):
            self._signals.wait(self._out_free)
            slot = self._out[self._sent % RING]
            piece = data[start : start + RING_SLOT]
            slot[:8].view(np.int64)[0] = mark
            slot[HEAD : HEAD + piece.size] = piece
            self._sent += 1
            self._signals.post(self._out_filled)

    def recv(self, out: np.ndarray) -> None:
        mark, data = stamp(Kind.MESSAGE, out.nbytes), flat(out).view(np.uint8)
        for start in range(0, max(1, data.size), RING_SLOT):
            self._signals.wait(self._in_filled)
            slot = self._in[self._received % RING]
            piece = data[start : start + RING_SLOT]
            demand_stamp(int(slot[:8].view(np.int64)[0]), mark)
            piece[:] = slot[HEAD : HEAD + piece.size]
            self._received += 1
            self._signals.post(self._in_free)

    def post(self) -> None:
        self._signals.post(self._post)

    def wait(self) -> None:
        self._signals.wait(self._wait)


def _block(data: np.ndarray, shape: tuple[int, ...], dtype: np.dtype) -> np.ndarray:
    """The first bytes of a slot's data as an array."""
    return np.ndarray(shape, dtype, data)
