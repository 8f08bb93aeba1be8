"""What ranks do in tests, and a program of one rank under a launcher: `python -m support.ranks WHAT RANKS TP ...`."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Mapping
from typing import Any

import numpy as np

from llmc.runtime.environment import launched
from llmc.runtime.errors import EngineError, LlmcError
from llmc.runtime.parallel.job import Job
from llmc.runtime.parallel.join import join


def echo(job: Job, arguments: Mapping[str, Any]) -> None:
    """Do what each message of rank 0 says until the job is over."""
    facts: Mapping[str, Any] = {"engine": "abc", "profile": "cpu-tp2", **arguments.get(str(job.rank), {})}
    if facts.get("never"):
        os._exit(7)
    job.agree(facts)
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
    elif kind == "raise" and header["rank"] == job.rank:
        raise EngineError("cannot compute a step", found="a damaged tensor", fix="another engine")
    elif kind == "bug" and header["rank"] == job.rank:
        raise ZeroDivisionError("by nothing")
    elif kind == "leave" and header["rank"] == job.rank:
        sys.exit(5)


def lead(job: Job) -> dict[str, Any]:
    """Rank 0's part of a short run: what it computed."""
    comm = job.communicator
    job.agree({"engine": "abc", "profile": "cpu-tp2"})
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


def main(ranks: int, tp: int, share: bool, start: float, arguments: str) -> int:
    place = launched()
    assert place is not None
    try:
        with join(place, ranks=ranks, tp=tp, profile="cpu-tp2", start=start, share=share) as job:
            if job.rank:
                echo(job, json.loads(arguments))
            else:
                print(json.dumps(lead(job)), flush=True)
    except LlmcError as error:
        print(f"{type(error).__name__} of rank {place.rank}: {error}", file=sys.stderr, flush=True)
        return error.exit_code
    return 0


if __name__ == "__main__":
    ranks, tp, share, start, arguments = sys.argv[1:]
    sys.exit(main(int(ranks), int(tp), share == "share", float(start), arguments))
