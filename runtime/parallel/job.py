"""One rank of a running job: its data plane, its control plane, and what all ranks must agree on before they load."""

from __future__ import annotations

import atexit
import socket
from collections.abc import Callable, Mapping
from types import TracebackType
from typing import Any

from ..errors import EngineError, LlmcError, RecipeError
from .control import Control
from .data.communicator import Communicator

START = 60.0
"""Seconds that ranks have to come, and to answer before the job has started."""
ENGINE = "engine"
"""The fact whose difference is the engines' fault, not that of the command lines."""
Facts = Mapping[str, str | int]


class Job:
    """A rank of a job. Leaving its `with` block ends the job: for all ranks with the block's error, if it has one."""

    def __init__(
        self,
        communicator: Communicator,
        control: Control,
        *,
        start: float,
        release: Callable[[], None],
        local_rank: int | None = None,
    ) -> None:
        """`release` gives back what the data plane holds, when no rank uses it any more."""
        self.communicator, self.control = communicator, control
        self.rank, self.ranks, self.tp = communicator.rank, communicator.ranks, communicator.tp
        hosts = communicator.hosts
        self.local_rank = hosts[: self.rank].count(hosts[self.rank]) if local_rank is None else local_rank
        """Its place among the ranks of its machine."""
        self._start, self._release = start, release
        self.broadcast, self.send, self.receive = control.broadcast, control.send, control.receive
        self.check = control.check
        atexit.register(self.close)

    def agree(self, facts: Facts) -> None:
        """Check, before weights are read, that these facts of every rank are those of rank 0.

        Raises:
            EngineError: another `engine`.
            RecipeError: another value of another fact.
        """
        if self.rank:
            self.control.tell(0, "facts", {**facts})
            self.control.hear("agreed")
            return
        found = dict[int, Mapping[str, Any]]()
        while len(found) < self.ranks - 1:
            frame = self.control.hear("facts", self._start, lambda: _missing(found, self.ranks))
            found[frame.rank] = frame.header
            if problem := difference(self.control.called(frame.rank), frame.header, facts):
                raise self.control.fail(problem)
        for rank in found:
            self.control.tell(rank, "agreed", {})

    def exchange(self, data: bytes) -> list[bytes]:
        """What every rank gives, in their order; all ranks call it equally often."""
        if self.rank:
            self.control.tell(0, "given", {"data": data.hex()})
            found = self.control.hear("gathered").header["data"]
        else:
            given = {0: data.hex()}
            while len(given) < self.ranks:
                frame = self.control.hear("given")
                given[frame.rank] = frame.header["data"]
            found = [given[rank] for rank in range(self.ranks)]
            for rank in range(1, self.ranks):
                self.control.tell(rank, "gathered", {"data": found})
        return [bytes.fromhex(one) for one in found]

    def fail(self, problem: BaseException) -> LlmcError:
        """End the job for all ranks with this error; returns what has ended it, which may be an earlier one."""
        return self.control.fail(problem)

    def close(self) -> None:
        """End the job. Rank 0 waits for the others; a second call does nothing."""
        atexit.unregister(self.close)
        self.control.close()
        self._release()

    def __enter__(self) -> Job:
        return self

    def __exit__(self, _kind: object, error: BaseException | None, _trace: TracebackType | None) -> None:
        if error is not None:
            self.fail(error)
        self.close()


def identity(rank: int, process: int) -> str:
    """What errors call a rank of this host."""
    return f"rank {rank} (host {socket.gethostname()}, pid {process})"


def difference(name: str, found: Mapping[str, Any], wanted: Facts) -> LlmcError | None:
    """The error of a rank whose facts are not those of rank 0."""
    for key in sorted({*found, *wanted}):
        if found.get(key) != wanted.get(key):
            kind = EngineError if key == ENGINE else RecipeError
            return kind(
                f"expected the same {key} on all ranks",
                found=f"{name} has {found.get(key)!r}, rank 0 has {wanted.get(key)!r}",
            )
    return None


def _missing(found: Mapping[int, object], ranks: int) -> str:
    absent = [str(rank) for rank in range(1, ranks) if rank not in found]
    return f"none of rank {', '.join(absent)}"
