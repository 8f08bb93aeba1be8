"""The data plane across hosts: messages of torch.distributed's gloo, on which sums are made in the order of shards."""

from __future__ import annotations

import ctypes
import math
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from datetime import timedelta
from queue import Empty, SimpleQueue
from typing import Any

import numpy as np

from ...environment import settle
from ...errors import ResourceError, install_hint
from .communicator import Check
from .turns import Kind, demand_stamp, flat, stamp

ROOM = 4 << 20
"""Bytes of a piece of a collective."""
_HEAD, _FIRST = 64, 16 * 1024
"""Every message begins with a stamp and so many bytes of data, whatever its size: gloo ends the process of a receiver
that has less room than comes, so the size is known before the rest is received."""
_IN_FLIGHT, _MOST_IN_FLIGHT = 16 << 20, 16
"""Bytes of messages, and messages, that a rank sends before their receivers take them."""
_SLICE = 0.05
_TOLD = 60
"""Slices that a broken connection waits for the job's own reason."""
_NEVER = timedelta(days=7)
"""gloo's own time limit: the control plane decides that a rank is gone, not this."""
_OPEN = "hosts that may connect to each other at any port"
_TURN, _MESSAGE, _BARRIER = 1, 2, 3
"""Tags."""


def distributed() -> Any:
    """The module torch.distributed.

    Raises:
        ResourceError: it is not installed.
    """
    settle("TORCH_CPP_LOG_LEVEL", "ERROR")  # its store warns of every address that has no name
    try:
        import torch
        import torch.distributed

        if not torch.distributed.is_available():
            raise ImportError("torch is built without it")
    except ImportError as error:
        raise ResourceError(
            "cannot join ranks of several processes without the extra 'parallel'",
            found=f"no torch.distributed: {error}",
            fix=install_hint("parallel"),
        ) from error
    return torch.distributed


class Gloo:
    """This process's gloo, and the one thread that calls it: a call may hang for as long as a peer does."""

    def __init__(self, store: Any, rank: int, ranks: int, address: str, check: Check, seconds: float) -> None:
        """Connect to all ranks within so many seconds; `address` is this rank's own, which the others can reach.

        Unlike init_process_group this leaves torch's default group to the user, and the address needs no variable.

        Raises:
            ResourceError: there is no connection, or the job ends.
        """
        self._check = check
        self._calls = SimpleQueue[tuple[Callable[[], Any], SimpleQueue[Any]] | None]()
        self._group: Any = None
        self._thread = threading.Thread(target=self._run, name="llmc-gloo", daemon=True)
        self._thread.start()
        self.call(lambda: self._connect(store, rank, ranks, address), seconds)

    def call(self, function: Callable[[], Any], seconds: float = math.inf) -> Any:
        """What a function gives that is called on gloo's thread; left when the job ends.

        Raises:
            ResourceError: a connection is broken, or nothing has come for so many seconds.
        """
        answer = SimpleQueue[Any]()
        self._calls.put((function, answer))
        late = time.monotonic() + seconds
        while True:
            try:
                done, value = answer.get(timeout=_SLICE)
                break
            except Empty:
                self._check()
                if time.monotonic() > late:
                    asked = "cannot connect to the ranks on other hosts"
                    raise ResourceError(asked, found=f"nothing for {seconds:.0f} s", fix=_OPEN) from None
        if done:
            return value
        if not isinstance(value, RuntimeError):
            raise value
        for _ in range(_TOLD):  # a rank that died breaks its connections first, and the job's error names it
            self._check()
            time.sleep(_SLICE)
        found = next(iter(str(value).splitlines()), "")
        raise ResourceError("cannot exchange arrays with other hosts", found=f"gloo: {found}") from value

    def send(self, x: np.ndarray, peer: int, tag: int, mark: int) -> list[Any]:
        """On gloo's thread: start to send an array, which must stay as it is; returns what `done` waits for."""
        data = flat(x).view(np.uint8)
        head = np.zeros(_HEAD + _FIRST, np.uint8)
        head[:16].view(np.int64)[:] = mark, data.size
        first = data[:_FIRST]
        head[_HEAD : _HEAD + first.size] = first
        parts = [head] if data.size <= _FIRST else [head, data[_FIRST:]]
        return [(self._group.send([_tensor(part)], peer, tag), part) for part in parts]

    def done(self, sent: Sequence[Any]) -> None:
        """On gloo's thread: wait until what `send` returned is sent."""
        for work, _ in sent:
            work.wait()

    def recv(self, out: np.ndarray, peer: int, tag: int, mark: int) -> None:
        """On gloo's thread: wait for an array."""
        data = flat(out).view(np.uint8)
        head = np.empty(_HEAD + _FIRST, np.uint8)
        self._group.recv([_tensor(head)], peer, tag).wait()
        found, size = head[:16].view(np.int64).tolist()
        demand_stamp(found, mark)
        demand_stamp(stamp(Kind.MESSAGE, size), stamp(Kind.MESSAGE, data.size))
        first = data[:_FIRST]
        first[:] = head[_HEAD : _HEAD + first.size]
        if data.size > _FIRST:
            self._group.recv([_tensor(data[_FIRST:])], peer, tag).wait()

    def close(self) -> None:
        """Give gloo back; if its thread hangs in it, it stays until the process ends."""
        self._calls.put(None)
        self._thread.join(_SLICE * 10)
        if self._thread.is_alive() and self._group is not None:
            # never freed: the destructor would wait for the call that hangs
            ctypes.pythonapi.Py_IncRef(ctypes.py_object(self._group))
        self._group = None

    def _connect(self, store: Any, rank: int, ranks: int, address: str) -> None:
        gloo = distributed().ProcessGroupGloo
        options = gloo._Options()
        options._devices = [gloo.create_device(hostname=address)]
        options._timeout = _NEVER
        self._group = gloo(store, rank, ranks, options)

    def _run(self) -> None:
        while (call := self._calls.get()) is not None:
            function, answer = call
            try:
                answer.put((True, function()))
            except BaseException as problem:
                answer.put((False, problem))


class GlooExchange:
    """The exchange of a TP group whose ranks are on several hosts."""

    room = ROOM

    def __init__(self, gloo: Gloo, members: Sequence[int], rank: int) -> None:
        self._gloo, self._members, self._shard = gloo, members, members.index(rank)
        self.share = ROOM // len(members)
        self._others = [shard for shard, member in enumerate(members) if member != rank]

    def give(self, stamp: int, piece: np.ndarray, shapes: Sequence[tuple[int, ...]]) -> Sequence[np.ndarray]:
        piece = np.array(piece, order="C")  # its own memory, as a sum is written where it lies
        found = [np.empty(shape, piece.dtype) for shape in shapes]
        found[self._shard] = piece
        self._gloo.call(lambda: self._turn(stamp, [piece] * len(shapes), found))
        return found

    def deal(self, stamp: int, pieces: Sequence[np.ndarray]) -> Sequence[np.ndarray]:
        pieces = [np.array(piece, order="C") for piece in pieces]
        own = pieces[self._shard]
        found = [own if shard == self._shard else np.empty_like(own) for shard in range(len(pieces))]
        self._gloo.call(lambda: self._turn(stamp, pieces, found))
        return found

    def _turn(self, mark: int, pieces: Sequence[np.ndarray], found: Sequence[np.ndarray]) -> None:
        sent = [one for i in self._others for one in self._gloo.send(pieces[i], self._members[i], _TURN, mark)]
        for i in self._others:
            self._gloo.recv(found[i], self._members[i], _TURN, mark)
        self._gloo.done(sent)


class GlooLink:
    """Messages between two ranks on two hosts."""

    def __init__(self, gloo: Gloo, peer: int) -> None:
        self._gloo, self._peer = gloo, peer
        self._sent = deque[tuple[int, list[Any]]]()
        self._bytes = 0

    def send(self, x: np.ndarray) -> None:
        copy = np.array(x, order="C")
        self._gloo.call(lambda: self._send(copy))

    def recv(self, out: np.ndarray) -> None:
        mark = stamp(Kind.MESSAGE, out.nbytes)
        self._gloo.call(lambda: self._gloo.recv(out, self._peer, _MESSAGE, mark))

    def post(self) -> None:
        nothing = np.empty(0, np.uint8)
        self._gloo.call(lambda: self._gloo.done(self._gloo.send(nothing, self._peer, _BARRIER, 0)))

    def wait(self) -> None:
        nothing = np.empty(0, np.uint8)
        self._gloo.call(lambda: self._gloo.recv(nothing, self._peer, _BARRIER, 0))

    def _send(self, x: np.ndarray) -> None:
        self._sent.append((x.nbytes, self._gloo.send(x, self._peer, _MESSAGE, stamp(Kind.MESSAGE, x.nbytes))))
        self._bytes += x.nbytes
        while self._bytes > _IN_FLIGHT or len(self._sent) > _MOST_IN_FLIGHT:
            size, oldest = self._sent.popleft()
            self._gloo.done(oldest)
            self._bytes -= size


def _tensor(data: np.ndarray) -> Any:
    import torch

    return torch.from_numpy(data)
