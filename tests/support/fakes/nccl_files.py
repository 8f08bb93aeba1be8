"""libnccl between processes without GPUs: each is a rank over its own fake driver, and numbers pass through files.

The files lie in a folder that all ranks know. `FakeNccl` is the library inside of one process.
"""

from __future__ import annotations

import os
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from support.fakes.driver import FakeApi
from support.fakes.nccl import Call, FakeNccl, World

_DTYPES = {2: np.int32, 7: np.float32}


class FilesNccl(FakeNccl):
    """The library of one rank. `dies_after`: the number of exchanges after which the process is killed."""

    def __init__(self, api: FakeApi, folder: Path, *, gpu: int = 0, dies_after: int = -1) -> None:
        super().__init__(World([api]), 0, gpu=gpu)
        self._folder, self.dies_after = folder, dies_after
        self._done = Counter[str]()
        self.over = False
        """The test is over: nobody waits any more."""

    def ncclGetUniqueId(self, into: Any) -> int:
        super().ncclGetUniqueId(into)
        into._obj.internal = b"of process %d %s" % (os.getpid(), self.made[-1].encode())
        return 0

    def ncclCommInitRank(self, into: Any, ranks: int, name: Any, rank: int) -> int:
        self._write(f"{name.internal.decode()} join {rank}", np.zeros(1, np.float32))
        while not all(self._there(f"{name.internal.decode()} join {one}") for one in range(ranks)):
            if self.over:
                return 2
            time.sleep(0.001)
        return super().ncclCommInitRank(into, ranks, name, rank)

    def _give(
        self, function: str, sends: int, receives: int, count: int, dtype: int, peer: int | None, comm: int, at: int
    ) -> int:
        name, ranks, rank = self.live[comm]
        (stream,) = (one for one in self.api.streams if int(one) == at)
        call = Call(function, sends, receives, count, dtype, peer, ranks, stream.capturing is not None)
        self.calls.append(call)
        stream.give(_Exchange(self, name.decode(), rank, comm, call))
        return 0

    def begin(self, group: str) -> int:
        """The number of an exchange in its group, whose ranks all have the same ones in the same order."""
        if sum(self._done.values()) == self.dies_after:
            os.kill(os.getpid(), 9)
        self._done[group] += 1
        return self._done[group]

    def _write(self, name: str, array: np.ndarray) -> None:
        made = self._folder / f"unfinished {os.getpid()}.npy"
        np.save(made, array)
        made.rename(self._folder / name)

    def _there(self, name: str) -> bool:
        return (self._folder / name).exists()

    def put(self, name: str, array: np.ndarray) -> None:
        self._write(name, array)

    def get(self, names: list[str]) -> list[np.ndarray] | None:
        """What ranks have put under these names, once all have."""
        return [np.load(self._folder / name) for name in names] if all(map(self._there, names)) else None


@dataclass(eq=False)
class _Exchange:
    """A queued exchange: False until what it needs of other ranks is there."""

    nccl: FilesNccl
    group: str
    rank: int
    comm: int
    call: Call
    waiting: list[str] = field(default_factory=list)

    def __call__(self) -> bool:
        call = self.call
        if not self.waiting:
            self._begin()
        found = self.nccl.get(self.waiting) if call.receives else []
        if found is None:
            return False
        self.waiting = []  # a graph may be launched again
        if call.receives:
            self._array(call.receives, call.group if call.function == "ncclAllGather" else 1)[:] = self._result(found)
        return True

    def _begin(self) -> None:
        call, rank = self.call, self.rank
        pair = "" if call.peer is None else f" pair {min(rank, call.peer)} {max(rank, call.peer)}"
        number = self.nccl.begin(self.group + pair)
        names = [f"{self.group}{pair} {number} {one}" for one in range(call.group)]
        if call.sends:
            scatters = call.function == "ncclReduceScatter"
            self.nccl.put(names[rank], self._array(call.sends, call.group if scatters else 1))
        self.waiting = names if call.peer is None else [names[call.peer]]

    def _result(self, found: list[np.ndarray]) -> np.ndarray:
        if self.call.function == "ncclRecv":
            return found[0]
        if self.call.function == "ncclAllGather":
            return np.concatenate(found)
        whole = sum(found[1:], start=found[0])
        at = self.rank * self.call.count
        return whole[at : at + self.call.count] if self.call.function == "ncclReduceScatter" else whole

    def _array(self, address: int, parts: int) -> np.ndarray:
        return self.nccl.api.device.array(address, _DTYPES[self.call.dtype], parts * self.call.count)
