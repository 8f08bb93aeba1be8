"""What ranks do in tests, and a program of one rank: `python -m support.parallel.ranks START RANKS TP WHAT`."""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Mapping
from typing import Any

import numpy as np

from llmc.runtime.environment import launched
from llmc.runtime.errors import EngineError, LlmcError
from llmc.runtime.parallel.job import Job
from llmc.runtime.parallel.meet import join
from llmc.runtime.parallel.start import spawn

FACTS = {"engine": "abc", "profile": "cpu-tp2"}


def echo(job: Job, arguments: Mapping[str, Any]) -> None:
    """Do what each message of rank 0 says until the job is over."""
    special = arguments.get(str(job.rank), {})
    if "exit" in special:
        os._exit(special["exit"])
    if "sleep" in special:
        time.sleep(special["sleep"])
    job.agree({**FACTS, **special})
    while (frame := job.receive()) is not None:
        step(job, frame.kind, [np.array(array) for array in frame.arrays], frame.header)


def step(job: Job, kind: str, arrays: list[np.ndarray], header: Mapping[str, Any]) -> None:
    """One step of a rank above 0; what it waits for comes never if another rank is meant to fail."""
    comm = job.communicator
    if kind == "sum":
        for array in arrays:
            comm.all_reduce(array, array)
        job.send("sum", {"pid": os.getpid()}, arrays)
    elif kind == "pass":  # a message along the ranks, each of which adds its number
        array = np.empty(header["size"], np.float32)
        comm.recv(array, job.rank - 1)
        comm.send(array + job.rank, (job.rank + 1) % job.ranks)
    elif kind == "recv":
        comm.recv(np.empty(4, np.float32), 0)
    elif kind == "sleep":  # as in a long call of a library
        time.sleep(60)
    elif kind == "raise" and header["rank"] == job.rank:
        raise EngineError("cannot compute a step", found="a damaged tensor", fix="another engine")
    elif kind == "bug" and header["rank"] == job.rank:
        raise ZeroDivisionError("by nothing")
    elif kind == "leave" and header["rank"] == job.rank:
        sys.exit(5)


def lead(job: Job) -> dict[str, Any]:
    """Rank 0's part of a short run: what it computed."""
    comm = job.communicator
    job.agree(FACTS)
    x = np.arange(5000, dtype=np.float32) / 7
    job.broadcast("sum", {}, [x])
    comm.all_reduce(x, x)
    answers = [job.receive() for _ in range(job.ranks - 1)]
    job.broadcast("pass", {"size": 300_000})
    y = np.ones(300_000, np.float32)
    comm.send(y, 1)
    comm.recv(y, job.ranks - 1)
    pids = {str(one.rank): one.header["pid"] for one in answers if one is not None}
    return {"sum": float(x[-1]), "passed": float(y[-1]), "pids": pids}


def hold(job: Job, what: str) -> None:
    """Rank 0's part of a run that a test will end: say the processes, then wait in a way that never ends."""
    job.agree(FACTS)
    job.broadcast("sum", {}, [np.ones(4, np.float32)])
    job.communicator.all_reduce(np.ones(4, np.float32), np.empty(4, np.float32))
    answers = {one.rank: one.header["pid"] for _ in range(1, job.ranks) if (one := job.receive()) is not None}
    pids = [os.getpid(), *(answers[rank] for rank in range(1, job.ranks))]
    job.broadcast({"recv": "sleep", "collective": "sleep", "idle": "none", "sleep": "sleep", "waited": "recv"}[what])
    print(json.dumps(pids), flush=True)
    if what == "recv":
        job.communicator.recv(np.empty(4, np.float32), 1)
    elif what == "collective":
        job.communicator.all_reduce(np.ones(4, np.float32), np.empty(4, np.float32))
    elif what in ("idle", "waited"):
        job.receive()
    time.sleep(60)


def main(start: str, ranks: int, tp: int, what: str) -> int:
    """`start`: "spawn", or for a launcher "share" or "apart" (each rank on a host of its own), and seconds to come."""
    start, _, seconds = start.partition(":")
    place = launched()
    rank = 0 if place is None else place.rank
    try:
        if place is None:
            job = spawn(echo, {}, ranks=ranks, tp=tp)
        else:
            job = join(place, ranks=ranks, tp=tp, profile="cpu-tp2", start=float(seconds or 30), share=start == "share")
        with job:
            if job.rank:
                echo(job, {})
            elif what == "lead":
                print(json.dumps(lead(job)), flush=True)
            else:
                hold(job, what)
    except LlmcError as error:
        print(f"{type(error).__name__} of rank {rank}: {error}", file=sys.stderr, flush=True)
        return error.exit_code
    except KeyboardInterrupt:
        return 130
    return 0


if __name__ == "__main__":
    from support.parallel import ranks as this  # by the name that spawned processes import

    start, number, shards, doing = sys.argv[1:]
    sys.exit(this.main(start, int(number), int(shards), doing))
