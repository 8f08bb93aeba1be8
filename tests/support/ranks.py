"""What ranks above 0 do in tests: functions of a module, as `spawn` asks for."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

import numpy as np

from llmc.runtime.parallel.job import Job


def echo(job: Job, arguments: Mapping[str, Any]) -> None:
    """Answer each message with its sum over the TP group, or with what it asks for."""
    while (frame := job.receive()) is not None:
        arrays = [np.array(array) for array in frame.arrays]
        for array in arrays:
            job.communicator.all_reduce(array, array)
        job.send(frame.kind, {"rank": job.rank, "pid": os.getpid(), **arguments}, arrays)
