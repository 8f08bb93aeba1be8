"""Ranks as threads of this process, each with the data plane that a process of its own would have."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from llmc.runtime.errors import ResourceError
from llmc.runtime.parallel.data import memory
from llmc.runtime.parallel.data.gloo import Gloo, distributed
from llmc.runtime.parallel.data.mesh import Mesh


class Crew:
    """`tp` shards in each stage; ranks with equal numbers in `hosts` share memory."""

    def __init__(self, tp: int, hosts: Sequence[int]) -> None:
        self.over = False
        self._pool = ThreadPoolExecutor(len(hosts))
        store = distributed().HashStore()
        files = {host: memory.create(len(hosts)) for host in {*hosts}}

        def make(rank: int) -> Mesh:
            shared = memory.SharedMemory(os.dup(files[hosts[rank]]), len(hosts), self.check, spin=False)
            gloo = Gloo(store, rank, len(hosts), "127.0.0.1", self.check, 60) if len({*hosts}) > 1 else None
            return Mesh(rank, tp, hosts, shared, gloo)

        self.meshes = list(self._pool.map(make, range(len(hosts))))
        for file in files.values():
            os.close(file)

    def check(self) -> None:
        if self.over:
            raise ResourceError("cannot go on: the test is over")

    def all(self, function: Callable[[Mesh], Any]) -> list[Any]:
        """What a function returns on every rank, called at once on all."""
        return list(self._pool.map(function, self.meshes))

    def some(self, *functions: Callable[[Mesh], Any]) -> list[Any]:
        """What each rank's own function returns, or the exception it raises."""
        waiting = [self._pool.submit(one, mesh) for one, mesh in zip(functions, self.meshes, strict=True)]
        return [one.exception() or one.result() for one in waiting]

    def close(self) -> None:
        self.over = True
        list(self._pool.map(Mesh.close, self.meshes))
        self._pool.shutdown()
