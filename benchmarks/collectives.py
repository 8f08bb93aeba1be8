"""Measures what ranks pay to exchange arrays on one host: shared memory, gloo on loopback, and a copy beside them.

python benchmarks/collectives.py [--ranks 2 4] [--kib 8 64 4096] [--out benchmarks/results/collectives.json]

Each rank is a process. A latency is the median over all calls of rank 0, a bandwidth the array's bytes over it, and
`fastest` what the code itself takes when no other program runs. `copy` is np.copyto of the same bytes in the same
process just before: all_reduce of two ranks moves four times as many (each writes its slot, reads two, writes the sum).
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np

from llmc.runtime.machine import cpu_count, cpu_name
from llmc.runtime.parallel.data import memory
from llmc.runtime.parallel.data.gloo import Gloo, distributed
from llmc.runtime.parallel.data.mesh import Mesh

ROOT = Path(__file__).parent.parent
BUDGET = 1.0
"""Seconds for one measurement."""


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--ranks", type=int, nargs="+", default=[2, 4])
    parser.add_argument("--kib", type=int, nargs="+", default=[8, 64, 1024, 4096, 32768])
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks/results/collectives.json")
    parser.add_argument("--rank", type=json.loads, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.rank is not None:
        one_rank(options.kib, **options.rank)
        return
    rows = [row for ranks in options.ranks for via in ("shared", "gloo") for row in measured(options.kib, ranks, via)]
    result = {
        "date": datetime.now(UTC).date().isoformat(),
        "commit": subprocess.run(
            ["git", "rev-parse", "--short", "HEAD"], cwd=ROOT, capture_output=True, text=True
        ).stdout.strip(),
        "machine": f"{cpu_name()}, {cpu_count()} threads",
        "load": round(os.getloadavg()[0], 2),
        "rows": rows,
    }
    options.out.write_text(json.dumps(result, indent=1) + "\n")
    print(f"{'ranks':>5} {'via':>6} {'KiB':>6} {'call':>15} {'us':>9} {'fastest':>9} {'GB/s':>7} {'copies':>7}")
    for row in rows:
        print(
            f"{row['ranks']:5} {row['via']:>6} {row['kib']:6} {row['call']:>15} {row['us']:9.1f} "
            f"{row['fastest_us']:9.1f} {row['gb_s']:7.2f} {row['copies']:7.1f}"
        )


def measured(kib: list[int], ranks: int, via: str) -> list[dict[str, Any]]:
    """The rows of one set of processes."""
    file = memory.create(ranks)
    with tempfile.TemporaryDirectory() as folder:
        processes = [
            subprocess.Popen(
                [
                    *(sys.executable, __file__, "--kib", *map(str, kib), "--rank"),
                    json.dumps({"rank": rank, "ranks": ranks, "via": via, "file": file, "store": f"{folder}/store"}),
                ],
                stdout=subprocess.PIPE if rank == 0 else subprocess.DEVNULL,
                pass_fds=[file],
            )
            for rank in range(ranks)
        ]
        out, _ = processes[0].communicate()
        if any(one.wait() for one in processes):
            sys.exit("a rank failed")
    os.close(file)
    return [{"ranks": ranks, "via": via, **row} for row in json.loads(out)]


def one_rank(kib: list[int], rank: int, ranks: int, via: str, file: int, store: str) -> None:
    hosts = [0] * ranks if via == "shared" else list(range(ranks))
    shared = memory.SharedMemory(file, ranks, lambda: None, spin=cpu_count() >= ranks)
    gloo = None
    if via == "gloo":
        gloo = Gloo(distributed().FileStore(store, ranks), rank, ranks, "127.0.0.1", lambda: None, 60)
    mesh = Mesh(rank, ranks, hosts, shared, gloo)
    rows = []
    for size in kib:
        x = np.ones(size << 8, np.float32)
        out = np.empty_like(x)
        part = np.empty(x.size // ranks, np.float32)
        sizes = [part.size] * ranks
        calls: dict[str, Callable[[], None]] = {
            "copy": lambda out=out, x=x: np.copyto(out, x),
            "all_reduce": lambda out=out, x=x: mesh.all_reduce(x, out),
            "all_gather": lambda out=out, part=part, sizes=sizes: mesh.all_gather(part, 0, sizes, out),
            "reduce_scatter": lambda out=part, x=x, sizes=sizes: mesh.reduce_scatter(x, 0, sizes, out),
            "there and back": lambda out=out, x=x: back_and_forth(mesh, x, out),
        }
        copied = 0.0
        for name, call in calls.items():
            times = timed(mesh, call)
            found = median(times)
            copied = found if name == "copy" else copied
            rows.append(
                {
                    "kib": size,
                    "call": name,
                    "us": round(found * 1e6, 1),
                    "fastest_us": round(min(times) * 1e6, 1),
                    "gb_s": round(x.nbytes / found / 1e9, 2),
                    "copies": round(found / copied, 1),
                }
            )
    print(json.dumps(rows))
    mesh.barrier()  # the others have received all
    mesh.close()


def back_and_forth(mesh: Mesh, x: np.ndarray, out: np.ndarray) -> None:
    """Between ranks 0 and 1."""
    if mesh.rank == 0:
        mesh.send(x, 1)
        mesh.recv(out, 1)
    elif mesh.rank == 1:
        mesh.recv(out, 0)
        mesh.send(out, 0)


def timed(mesh: Mesh, call: Callable[[], None]) -> list[float]:
    """Seconds of each call; all ranks make as many."""
    count = np.zeros(1, np.int64)
    call()
    mesh.barrier()
    start = time.perf_counter()
    for _ in range(3):
        call()
    count[0] = max(5, min(3000, int(BUDGET / max(1e-6, (time.perf_counter() - start) / 3)))) if mesh.rank == 0 else 0
    mesh.all_reduce(count, count)
    times = []
    for _ in range(int(count[0])):
        before = time.perf_counter()
        call()
        times.append(time.perf_counter() - before)
    return times


if __name__ == "__main__":
    main()
