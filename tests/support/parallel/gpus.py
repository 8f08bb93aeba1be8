"""Ranks on GPUs that are not there: processes as in a real job, each with a fake driver and a fake NCCL.

`LLMC_FAKE_RANKS` is JSON: the folder through which they exchange, and what goes wrong on which rank. At its
end each rank has written there what it did.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from support.fakes.driver import FakeApi
from support.fakes.nccl_files import FilesNccl
from support.fakes.toy_kernels import KERNELS

from llmc.runtime.cuda import device as devices
from llmc.runtime.cuda import gpus
from llmc.runtime.cuda.driver import Driver
from llmc.runtime.cuda.exchange.nccl import Nccl
from llmc.runtime.parallel.job import Job
from llmc.runtime.plan.executor import PagedExecutor
from llmc.runtime.ranks import open as opening

VARIABLE = "LLMC_FAKE_RANKS"
serve_ = opening.serve


class FakeGpus:
    """This process's GPUs and libraries, for one rank."""

    def __init__(self, rank: int) -> None:
        told = json.loads(os.environ[VARIABLE])
        special = told.get(str(rank), {})
        self.rank, self._folder = rank, Path(told["folder"])
        self._api = FakeApi(KERNELS, memory=special.get("memory", 1 << 30))
        self.nccl = FilesNccl(self._api, self._folder, gpu=rank, dies_after=special.get("dies_after", -1))
        self.nccl.fail |= special.get("fail", {})
        self._there = tuple(gpus.Gpu(at, "a GPU", 90, 1 << 34) for at in range(told["gpus"]))
        self.tokens: list[list[int]] = []
        self.seeds: list[int | None] = []

    def install(self, replace: Any) -> None:
        """Put them in place; `replace` sets an attribute of an object."""
        submit, collect = PagedExecutor.submit, PagedExecutor.collect

        def submitted(executor: PagedExecutor, step: Any) -> Any:
            self.seeds += [one.sample.seed for one in step if one.sample is not None]
            ticket = submit(executor, step)
            while self.rank and not all([stream.run() for stream in self._api.streams]):
                time.sleep(1e-4)  # a GPU goes on while the rank waits for its next message
            return ticket

        def collected(executor: PagedExecutor, ticket: Any) -> Any:
            fresh = ticket.outputs is None
            outputs = collect(executor, ticket)
            if fresh:
                self.tokens.append([one.sampled.token for one in outputs if one.sampled is not None])
            return outputs

        replace(gpus, "detect", lambda: gpus.DetectedGpus("13.0", self._there))
        replace(devices.Driver, "load", lambda ordinal=0: Driver(self._api, ordinal))
        replace(devices.Nccl, "load", lambda: Nccl(self.nccl))
        replace(PagedExecutor, "submit", submitted)
        replace(PagedExecutor, "collect", collected)

    def report(self) -> dict[str, Any]:
        calls = [asdict(one) for one in self.nccl.calls]
        left = self._api.device.count + self._api.host.count + sum(self._api.live.values()) + len(self.nccl.live)
        return {"tokens": self.tokens, "seeds": self.seeds, "calls": calls, "left": left, "order": self.nccl.order}


def serve(job: Job, arguments: Mapping[str, Any]) -> None:
    """A rank above 0."""
    here = FakeGpus(job.rank)
    here.install(setattr)
    try:
        serve_(job, arguments)
    finally:
        report = Path(json.loads(os.environ[VARIABLE])["folder"]) / f"report {job.rank}"
        report.write_text(json.dumps(here.report()))
