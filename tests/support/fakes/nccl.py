"""libnccl without GPUs: ranks are in one process, each over its own fake driver, and exchange when all have come.

A call is recorded, and queued on the stream that it names, where it waits for the other ranks of its group. `World` has
the ranks of a job, and stands for its control plane too: whoever looks whether the job is aborted lets all ranks go on.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
from support.fakes.driver import FakeApi

from llmc.runtime.errors import LlmcError

_DTYPES = {2: np.int32, 7: np.float32}


@dataclass(frozen=True)
class Call:
    """A collective as it was asked for: `group` is the number of ranks of its communicator."""

    function: str
    sends: int
    receives: int
    count: int
    dtype: int
    peer: int | None
    group: int
    captured: bool


@dataclass(eq=False)
class World:
    """The ranks of a job that share this process, and what goes wrong in it."""

    apis: list[FakeApi]
    aborted: LlmcError | None = None
    there: dict[tuple[Any, ...], dict[int, _Meeting]] = field(default_factory=dict)
    """Ranks that wait for others, by group and kind of exchange."""

    def go_on(self) -> None:
        for api in self.apis:
            for stream in api.streams:
                stream.run()


@dataclass(eq=False)
class FakePeers:
    """The control plane of one rank; `names` are what all ranks give to `exchange`, made beforehand."""

    world: World
    local_rank: int
    names: list[bytes]
    gave: list[bytes] = field(default_factory=list)

    def exchange(self, data: bytes) -> list[bytes]:
        self.gave.append(data)
        return self.names

    def check(self) -> None:
        if self.world.aborted is not None:
            raise self.world.aborted
        self.world.go_on()


class FakeNccl:
    """The library as one rank has loaded it. `fail`: function to its result; `broken`: what went wrong meanwhile."""

    def __init__(self, world: World, number: int, *, gpu: int = 0) -> None:
        self.world, self.api, self.gpu = world, world.apis[number], gpu
        self.fail: dict[str, int] = {}
        self.broken = 0
        self.made: list[str] = []
        self.calls: list[Call] = []
        self.live: dict[int, tuple[bytes, int, int]] = {}
        """Name, ranks and rank of each communicator."""
        self.order: list[str] = []

    def __getattribute__(self, name: str) -> Any:
        found = super().__getattribute__(name)
        if not name.startswith("nccl") or name.startswith("ncclGetE") or name.startswith("ncclGetL"):
            return found
        self.order.append(name)
        failure = self.fail.get(name)
        return found if failure is None else lambda *_: failure

    def ncclGetErrorString(self, result: int) -> bytes:
        return b"text of %d" % result

    def ncclGetLastError(self, comm: int | None) -> bytes:
        return b"NET/Socket : peer has\n closed"

    def ncclGetVersion(self, into: Any) -> int:
        into._obj.value = 23203
        return 0

    def ncclGetUniqueId(self, into: Any) -> int:
        self.made.append(f"id {len(self.made)}")
        into._obj.internal = b"group %d" % len(self.made)
        return 0

    def ncclCommInitRank(self, into: Any, ranks: int, name: Any, rank: int) -> int:
        into._obj.value = comm = 1000 * (1 + len(self.order)) + rank
        self.live[comm] = bytes(name.internal), ranks, rank
        return 0

    def ncclCommCuDevice(self, comm: int, into: Any) -> int:
        into._obj.value = self.gpu
        return 0

    def ncclCommGetAsyncError(self, comm: int, into: Any) -> int:
        assert comm in self.live
        into._obj.value = self.broken
        return 0

    def ncclCommAbort(self, comm: int) -> int:
        del self.live[comm]
        for stream in self.api.streams:  # its kernels end, without results
            stream.queue = [one if getattr(one, "comm", None) != comm else lambda: None for one in stream.queue]
        return 0

    def ncclCommDestroy(self, comm: int) -> int:
        assert not self.api.live["graphs"], "a graph still has its exchanges"
        assert not any(stream.queue for stream in self.api.streams), "exchanges are not done"
        del self.live[comm]
        return 0

    def ncclAllReduce(self, sends: int, receives: int, count: int, dtype: int, op: int, comm: int, stream: int) -> int:
        assert op == 0
        return self._give("ncclAllReduce", sends, receives, count, dtype, None, comm, stream)

    def ncclAllGather(self, sends: int, receives: int, count: int, dtype: int, comm: int, stream: int) -> int:
        return self._give("ncclAllGather", sends, receives, count, dtype, None, comm, stream)

    def ncclReduceScatter(
        self, sends: int, receives: int, count: int, dtype: int, op: int, comm: int, stream: int
    ) -> int:
        assert op == 0
        return self._give("ncclReduceScatter", sends, receives, count, dtype, None, comm, stream)

    def ncclSend(self, sends: int, count: int, dtype: int, peer: int, comm: int, stream: int) -> int:
        return self._give("ncclSend", sends, 0, count, dtype, peer, comm, stream)

    def ncclRecv(self, receives: int, count: int, dtype: int, peer: int, comm: int, stream: int) -> int:
        return self._give("ncclRecv", 0, receives, count, dtype, peer, comm, stream)

    def _give(
        self, function: str, sends: int, receives: int, count: int, dtype: int, peer: int | None, comm: int, at: int
    ) -> int:
        name, ranks, rank = self.live[comm]
        (stream,) = (one for one in self.api.streams if int(one) == at)
        captured = stream.capturing is not None
        self.calls.append(Call(function, sends, receives, count, dtype, peer, ranks, captured))
        stream.give(_Meeting(self, (name, ranks, rank), comm, self.calls[-1]))
        return 0


@dataclass(eq=False)
class _Meeting:
    """A queued exchange: False until all its ranks have come."""

    nccl: FakeNccl
    of: tuple[bytes, int, int]
    comm: int
    call: Call
    came: bool = False

    def __call__(self) -> bool:
        (name, ranks, rank), call, world = self.of, self.call, self.nccl.world
        pair = tuple(sorted((rank, call.peer))) if call.peer is not None else ()
        key = name, pair, "" if pair else call.function
        if not self.came:
            self.came = True
            world.there.setdefault(key, {})[rank] = self
            if len(world.there[key]) == (2 if pair else ranks):
                self._exchange(dict(sorted(world.there.pop(key).items())))
        if self in world.there.get(key, {}).values():
            return False
        self.came = False  # a graph may be launched again
        return True

    def array(self, address: int, parts: int = 1) -> np.ndarray:
        return self.nccl.api.device.array(address, _DTYPES[self.call.dtype], parts * self.call.count)

    def _exchange(self, ranks: dict[int, _Meeting]) -> None:
        assert len({(one.call.count, one.call.dtype) for one in ranks.values()}) == 1
        if self.call.peer is not None:
            (send,) = (one for one in ranks.values() if one.call.function == "ncclSend")
            (recv,) = (one for one in ranks.values() if one.call.function == "ncclRecv")
            recv.array(recv.call.receives)[:] = send.array(send.call.sends)
            return
        count, size = self.call.count, len(ranks)
        scatters, gathers = (self.call.function == name for name in ("ncclReduceScatter", "ncclAllGather"))
        given = [one.array(one.call.sends, size if scatters else 1).copy() for one in ranks.values()]
        for shard, one in enumerate(ranks.values()):
            if gathers:
                one.array(one.call.receives, size)[:] = np.concatenate(given)
            else:
                whole = sum(given[1:], start=given[0])
                one.array(one.call.receives)[:] = whole[shard * count : (shard + 1) * count] if scatters else whole
