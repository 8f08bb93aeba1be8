"""The exchanges of one rank's GPU with those of other ranks: NCCL's communicators, and waiting that a dead rank ends.

A rank has one communicator of its stage, for sums and parts, and one of the whole job, between stages. All its
exchanges are on one stream, in the order of its plan, which is the order on every rank.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Any, Protocol, TypeVar

from ...errors import EngineError, LlmcError, ResourceError
from ...plan.between import RankOf
from ..driver import Driver
from ..launches import BoundCollective
from .nccl import DTYPES, ID_BYTES, Nccl

_POLL = 20e-6
"""Seconds between two looks at a step that is not done: a small part of any step."""
LEAVE = 5.0
"""Seconds that leaving the groups may take: NCCL may wait for the other ranks of the machine, which may be gone."""
_Made = TypeVar("_Made")


class Peers(Protocol):
    """The other ranks, over the job's control plane."""

    local_rank: int
    """The place of this rank among those of its machine, each of which takes one GPU."""

    def exchange(self, data: bytes) -> Sequence[bytes]:
        """Give `data` to all ranks; returns what each rank gave, in their order. Every rank calls it equally often.

        Raises:
            LlmcError: the job is aborted.
        """
        ...

    def check(self) -> None:
        """Called from any thread, and often: no longer than reading a variable.

        Raises:
            LlmcError: the job is aborted; the error of the rank that began it.
        """
        ...


class Communicator:
    """The communicators of a rank. It does not own the driver."""

    def __init__(self, rank: RankOf, peers: Peers, driver: Driver, nccl: Nccl) -> None:
        """Join the groups; all ranks do so at once.

        Raises:
            ResourceError: NCCL cannot connect them.
            EngineError: NCCL took another GPU than the driver.
            LlmcError: the job is aborted meanwhile.
        """
        self._peers, self._driver, self._nccl = peers, driver, nccl
        self._rank, self._lock = rank, threading.Lock()
        self._comms: list[int] = []
        ranks = rank.tp * rank.pp
        begins_stage = rank.tp > 1 and not rank.shard
        names = [nccl.unique_id() if begins else b"" for begins in (begins_stage, rank.pp > 1 and not rank.number)]
        given = peers.exchange(b"".join(name.ljust(ID_BYTES, b"\0") for name in names))
        first = rank.number - rank.shard
        try:
            self._stage = self._join(given[first][:ID_BYTES], rank.tp, rank.shard) if rank.tp > 1 else 0
            self._job = self._join(given[0][ID_BYTES:], ranks, rank.number) if rank.pp > 1 else 0
        except BaseException:
            self.abort()
            raise

    def run(self, one: BoundCollective, stream: Any) -> None:
        """Queue an exchange on a stream, which may be capturing."""
        nccl, dtype, at = self._nccl, DTYPES[one.dtype], int(stream)
        if not self._comms:
            raise _aborted(one.label)
        if one.peer is None:
            give = {"all_reduce": nccl.all_reduce, "all_gather": nccl.all_gather, "reduce_scatter": nccl.reduce_scatter}
            give[one.op](one.sends, one.receives, one.count, dtype, self._stage, at, one.label)
        elif one.op == "send":
            nccl.send(one.sends, one.count, dtype, one.peer, self._job, at, one.label)
        else:
            nccl.recv(one.receives, one.count, dtype, one.peer, self._job, at, one.label)

    def wait(self, event: Any) -> None:
        """Wait until all work queued before an event is done, or until a rank or NCCL has failed.

        Raises:
            LlmcError: one has; what was running on the GPU has been aborted.
        """
        while not self._driver.passed(event):
            self._check()
            time.sleep(_POLL)
        if not self._comms:  # what was aborted passes too, without a result
            self._check()

    def _check(self) -> None:
        try:
            self._peers.check()
            with self._lock:
                if not self._comms:
                    raise _aborted("exchange results with other ranks")
                for comm in self._comms:
                    self._nccl.check(comm, "exchange results with other ranks")
        except LlmcError:
            self.abort()
            raise

    def abort(self) -> None:
        """End what is running on the GPU; any thread may call it, and again."""
        for comm in self._taken():
            with suppress(LlmcError):
                self._nccl.abort(comm)

    def close(self) -> None:
        """Leave the groups, once all exchanges are done; all ranks do so at once.

        Raises:
            LlmcError: a rank or NCCL has failed, so the groups have been aborted; or they could not be left.
        """
        self._check()
        comms = self._taken()

        def leave() -> None:
            self._driver.use()
            for comm in reversed(comms):
                self._nccl.destroy(comm)

        late = time.monotonic() + LEAVE

        def check() -> None:
            self._peers.check()
            if time.monotonic() > late:
                raise ResourceError(f"cannot leave a group of GPUs in {LEAVE:.0f} s")

        _while_checked(leave, check)

    def _taken(self) -> list[int]:
        with self._lock:
            taken, self._comms = self._comms, []
        return taken

    def _join(self, name: bytes, ranks: int, rank: int) -> int:
        """Join in another thread: it returns only once all ranks have come, which a dead one never does."""

        def join() -> int:
            self._driver.use()
            return self._nccl.join(name, ranks, rank)

        comm = _while_checked(join, self._peers.check)
        with self._lock:
            self._comms = [*self._comms, comm]
        found = self._nccl.gpu(comm)
        if found != self._driver.ordinal:
            raise EngineError(f"expected rank {self._rank.number} on GPU {self._driver.ordinal}", found=f"GPU {found}")
        return comm


def _aborted(doing: str) -> ResourceError:
    return ResourceError(f"cannot {doing}", found="the exchange between GPUs was aborted")


def _while_checked(make: Callable[[], _Made], check: Callable[[], None]) -> _Made:
    """What `make` returns or raises, unless `check` raises first: then the thread is left behind."""
    made: list[_Made] = []
    failed: list[BaseException] = []

    def run() -> None:
        try:
            made.append(make())
        except BaseException as error:
            failed.append(error)

    thread = threading.Thread(target=run, name="llmc-nccl", daemon=True)
    thread.start()
    while thread.is_alive():
        thread.join(0.05)
        if thread.is_alive():
            check()
    if failed:
        raise failed[0]
    return made[0]
