"""Run as a process over the fake libcuda: an engine's requests with and without graphs and PDL, each with its trace.

Arguments: the engine and a folder, for a trace `PDL-GRAPHS.txt` each. Its last line is what it did, as JSON.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Collection, Mapping
from dataclasses import replace
from itertools import product
from pathlib import Path
from typing import Any

import cuda.bindings
import numpy as np

from llmc.runtime.cuda.contents import EngineContents
from llmc.runtime.cuda.device import CudaDevice
from llmc.runtime.engine_file.file import EngineFile
from llmc.runtime.plan.executor import PagedExecutor
from llmc.runtime.plan.plan import Plan
from llmc.runtime.scheduling.request import Request
from llmc.runtime.scheduling.scheduler import Scheduler

PROMPTS = (3, 40, 90, 5, 12, 1)
"""Tokens of each; the next comes when one has ended, so prompts and decoding share steps."""
ANSWERS = (6, 9, 4, 12, 3, 14)
AT_ONCE = 3


class Noted:
    """A device, and the programs and sizes it was given."""

    def __init__(self, device: CudaDevice) -> None:
        self._device = device
        self.blocks, self.notes = device.blocks, device.notes
        self.read, self.close = device.read, device.close
        self.steps: list[tuple[int, dict[str, int]]] = []

    def run(
        self, program: int, sizes: Mapping[str, int], inputs: Mapping[str, np.ndarray], wanted: Collection[str]
    ) -> Any:
        self.steps.append((program, dict(sizes)))
        return self._device.run(program, sizes, inputs, wanted)


def device(engine: EngineFile, profile: str, plan: Plan, slots: int, *, pdl: bool, graphs: bool) -> CudaDevice:
    """The one place where a device is made."""
    return CudaDevice(EngineContents(engine, profile), replace(plan, pdl=pdl), slots, graphs=graphs)


def run(path: Path, *, pdl: bool, graphs: bool) -> dict[str, Any]:
    """All requests; the tokens each got, and the device's steps."""
    made: list[Noted] = []

    def make(engine: EngineFile, profile: str, plan: Plan, slots: int) -> Noted:
        made.append(Noted(device(engine, profile, plan, slots, pdl=pdl, graphs=graphs)))
        return made[0]

    executor = PagedExecutor(EngineFile.open(path), "sm_90", make, max_batch=None)
    try:
        requests = [Request(tuple(range(2, 2 + n)), m) for n, m in zip(PROMPTS, ANSWERS, strict=True)]
        scheduler, waiting = Scheduler(executor), list(requests)
        while waiting or not scheduler.idle:
            while waiting and sum(request.finish is None for request in requests) - len(waiting) < AT_ONCE:
                scheduler.add(waiting.pop(0))
            scheduler.step()
    finally:
        executor.close()
    return {"tokens": [len(request.tokens) for request in requests], "steps": made[0].steps}


def main(path: Path, folder: Path) -> None:
    said: dict[str, Any] = {"bindings": cuda.bindings.__version__, "runs": {}}
    for pdl, graphs in product((0, 1), (0, 1)):
        os.environ["LLMC_FAKE_TRACE"] = str(folder / f"{pdl}-{graphs}.txt")
        said["runs"][f"{pdl}-{graphs}"] = run(path, pdl=bool(pdl), graphs=bool(graphs))
    print(json.dumps(said))


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
