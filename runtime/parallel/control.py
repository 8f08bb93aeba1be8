"""The control plane: messages between rank 0 and the others, signs of life, and how an error of one ends all."""

from __future__ import annotations

import contextlib
import os
import selectors
import socket
import sys
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from queue import Empty, SimpleQueue
from typing import Any

import numpy as np

from ..errors import LlmcError, ResourceError
from . import faults
from .frames import Connection, Frame
from .processes import Processes, Strangers

BEAT = 0.5
"""Seconds between signs of life."""
SILENCE = 5.0
"""Seconds without one after which a rank counts as stopped or cut off."""
GRACE = 3.0
"""Seconds that a rank has to leave after the job's end, before its process is ended."""
_SLICE = 0.25
_BACKLOG = 256 << 20
"""Bytes that wait for one rank before a sender waits too."""
_FAIL, _ABORT, _BYE = "fail", "abort", "bye"
_OWN = "_"
"""How the kinds of the job's own messages begin, which `receive` does not give."""


class Control:
    """One rank's end: rank 0 has a connection to every other rank, each of them one to rank 0.

    A thread reads, gives signs of life and looks for those of others, whatever the rank computes. What ends the job is
    raised by `check`, `receive` and the data plane's waits. A rank above 0 that does not leave within GRACE of the end
    is ended by its own thread; rank 0 is the user's process and never is.
    """

    def __init__(self, rank: int, connections: Sequence[Connection], processes: Processes | None = None) -> None:
        self.rank = rank
        self.error: LlmcError | None = None
        """What has ended the job."""
        self._peers = {one.rank: one for one in connections}
        self._processes = processes or Strangers()
        self._queues = defaultdict[str, SimpleQueue[Frame | None]](SimpleQueue)
        """Messages of the user under "", the job's own by kind: a rank may be a step ahead of another."""
        self._closing = self._bye = False
        self._stop: Callable[[], None] | None = None
        self._left = set[int]()
        """Ranks that may close their connection: the job is over for them."""
        self._deadline: float | None = None
        self._lock = threading.Lock()
        self._process = os.getpid()
        self._wake, self._woken = socket.socketpair()
        self._wake.setblocking(False)
        self._woken.setblocking(False)
        for one in connections:
            one.reader.trusted = True
        self._thread = threading.Thread(target=self._run, name="llmc-ranks", daemon=True)
        self._thread.start()

    def name(self, rank: int, name: str) -> None:
        """What errors call a rank: "rank 3 (host x, pid y)"."""
        self._peers[rank].name = name

    def called(self, rank: int) -> str:
        return self._peers[rank].name

    def addresses(self, here: Sequence[bool]) -> list[str]:
        """Rank 0: of every rank the address at which the others reach it; `here` are those of rank 0's machine.

        Those have the address at which a rank elsewhere has reached rank 0: their own may be of the loopback.
        """
        away = [one for one in self._peers.values() if not here[one.rank]] or list(self._peers.values())
        own = _host(away[0].socket.getsockname())
        elsewhere = {one.rank: _host(one.socket.getpeername()) for one in away}
        return [elsewhere.get(rank, own) for rank in range(len(here))]

    def check(self) -> None:
        """Raise what has ended the job, if something has."""
        if self.error is not None:
            raise self.error
        if self._bye:
            raise ResourceError("cannot go on: rank 0 has ended the job")

    def broadcast(self, kind: str, header: Mapping[str, Any] | None = None, arrays: Sequence[np.ndarray] = ()) -> None:
        """Rank 0: a message to every other rank."""
        self._send(list(self._peers), Frame(kind, header or {}, arrays))

    def send(self, kind: str, header: Mapping[str, Any] | None = None, arrays: Sequence[np.ndarray] = ()) -> None:
        """Another rank: a message to rank 0."""
        self._send([0], Frame(kind, header or {}, arrays))

    def receive(self) -> Frame | None:
        """The next message, of any rank; None when rank 0 has ended the job in order."""
        return None if self._bye and self._queue("").empty() else self._next("", None)

    def tell(self, rank: int, kind: str, header: Mapping[str, Any]) -> None:
        """A message of the job itself to one rank."""
        self._send([rank], Frame(_OWN + kind, header))

    def hear(self, kind: str, seconds: float | None = None, missing: Callable[[], str] = str) -> Frame:
        """The next message of the job itself of a kind; ranks above 0 need no limit, as rank 0 has one.

        Raises:
            ResourceError: none has come in time; `missing` says of whom.
        """
        frame = self._next(_OWN + kind, seconds)
        if frame is None:
            raise self.fail(ResourceError(f"cannot start the ranks: no answer in {seconds} s", found=missing()))
        return frame

    def fail(self, problem: BaseException) -> LlmcError:
        """End the job for all ranks, with this error; returns what has ended it, which may be an earlier one."""
        error = faults.as_error(problem)
        if os.getpid() == self._process:  # a child made by fork has no part in the job
            self._end(error)
        return self.error or error

    def when_failed(self, stop: Callable[[], None]) -> None:
        """Have an error of the job call `stop`, on a thread of its own: it ends this rank's calls of a library."""
        with self._lock:
            self._stop, failed = stop, self.error is not None
        if failed:
            stop()

    def close(self) -> None:
        """End the job in order: rank 0 says so to all and waits for them. Nothing of it is left then."""
        if os.getpid() != self._process:
            return
        with self._lock:
            first, self._closing = not self._closing, True
        if first and self.error is None and self.rank == 0:
            for one in self._peers.values():
                one.send(Frame(_BYE))
        self._poke()
        if self._thread is not threading.current_thread():
            self._thread.join()

    def _send(self, ranks: Sequence[int], frame: Frame) -> None:
        self.check()
        for rank in ranks:
            one = self._peers[rank]
            one.send(frame)
            if one.waiting:
                self._poke()
                while one.waiting > _BACKLOG:
                    time.sleep(0.01)
                    self.check()

    def _queue(self, kind: str) -> SimpleQueue[Frame | None]:
        with self._lock:
            return self._queues[kind]

    def _next(self, kind: str, seconds: float | None) -> Frame | None:
        frames = self._queue(kind)
        if self.error is not None:
            raise self.error
        try:
            frame = frames.get(timeout=seconds)
        except Empty:
            return None
        if self.error is not None:
            raise self.error
        return frame

    def _end(self, error: LlmcError) -> None:
        """The first error ends the job; rank 0 tells all others, another rank tells rank 0."""
        with self._lock:
            if self.error is not None or (self._closing and self.rank == 0):
                return
            self.error, self._deadline, stop = error, time.monotonic() + GRACE, self._stop
        for one in self._peers.values():
            if one.rank not in self._left:
                one.send(Frame(_FAIL if self.rank else _ABORT, faults.told(error)))
        with self._lock:
            queues = list(self._queues.values())
        for queue in queues:
            queue.put(None)
        if stop is not None:
            threading.Thread(target=stop, name="llmc-stop", daemon=True).start()
        self._poke()

    def _poke(self) -> None:
        """Have the thread look again."""
        with contextlib.suppress(OSError):  # full, or closed
            self._wake.send(b"\0")

    def _run(self) -> None:
        try:
            with selectors.DefaultSelector() as selector:
                selector.register(self._woken, selectors.EVENT_READ)
                for one in self._peers.values():
                    selector.register(one.socket, selectors.EVENT_READ, one)
                self._pump(selector)
        except BaseException as problem:
            self._end(faults.as_error(problem))
        for one in self._peers.values():
            one.close()
        self._processes.end()
        self._wake.close()
        self._woken.close()

    def _pump(self, selector: selectors.BaseSelector) -> None:
        beaten = last = time.monotonic()
        while True:
            open_: list[Connection] = [key.data for key in selector.get_map().values() if key.data is not None]
            for one in open_:
                wanted = selectors.EVENT_READ | (0 if one.flush() else selectors.EVENT_WRITE)
                selector.modify(one.socket, wanted, one)
            if self._over(open_):
                return
            for key, _ in selector.select(_SLICE):
                if key.data is None:
                    self._drain()
                else:
                    self._read(key.data, selector)
            now = time.monotonic()
            # no more than a slice: what this process did not wait for, as it was stopped itself, is nobody's silence
            waited, last = min(now - last, _SLICE), now
            for one in open_:
                one.silent += waited
                if one.silent > SILENCE and one.rank not in self._left and self._must_speak(one):
                    self._end(faults.silent(one.name, SILENCE))
            if now - beaten >= BEAT:
                beaten = now
                for one in open_:
                    one.beat()

    def _must_speak(self, one: Connection) -> bool:
        """True if its silence is a fault: a process that has not spoken yet may still import, unless it is stopped."""
        return one.heard or self._processes.stopped(one.rank)

    def _over(self, open_: Sequence[Connection]) -> bool:
        """True when the thread has nothing left to do. Rank 0 waits for the others, each of them for nobody."""
        late = self._deadline is not None and time.monotonic() > self._deadline
        if self.rank == 0:
            if self._closing and self._deadline is None:
                self._deadline = time.monotonic() + GRACE
            return late or not open_
        if self._closing:
            return late or not any(one.waiting for one in open_)
        if late:  # stuck in a library: nothing but its end is left
            sys.stderr.flush()
            os._exit(self.error.exit_code if self.error else 0)
        return False

    def _drain(self) -> None:
        with contextlib.suppress(OSError):
            while self._woken.recv(4096):
                pass

    def _read(self, one: Connection, selector: selectors.BaseSelector) -> None:
        try:
            for frame in one.reader.fill(one.socket):
                one.silent, one.heard = 0.0, True
                if frame is not None:
                    self._take(one, Frame(frame.kind, frame.header, frame.arrays, one.rank))
        except EOFError:
            selector.unregister(one.socket)
            if one.rank not in self._left and self.error is None and not self._closing:
                self._left.add(one.rank)
                self._end(faults.ended(one.name, self._processes.died(one.rank)))
        except LlmcError as error:  # not a message
            selector.unregister(one.socket)
            self._end(faults.heard(faults.told(error), one.name))

    def _take(self, one: Connection, frame: Frame) -> None:
        if frame.kind == _FAIL and self.rank == 0:
            self._left.add(one.rank)
            self._end(faults.heard(frame.header, one.name))
        elif frame.kind == _ABORT and self.rank:
            self._left.add(one.rank)
            self._end(faults.heard(frame.header, ""))
        elif frame.kind == _BYE and self.rank:
            self._left.add(one.rank)
            self._bye, self._deadline = True, time.monotonic() + GRACE
            self._queue("").put(None)
        else:
            self._queue(frame.kind if frame.kind.startswith(_OWN) else "").put(frame)


def _host(address: tuple[Any, ...]) -> str:
    """The host of a socket's address; IPv4 in its own form, also from a socket that takes both."""
    return str(address[0]).removeprefix("::ffff:")
