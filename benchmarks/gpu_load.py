"""Cold start on a GPU, in parts: interpreter, imports, engine file, context, kernels, memory, weights, first token.

python benchmarks/gpu_load.py [--shape 8b] [--quantize fp8] [--rounds 5] [--cold-rounds 5]

Every round is a new process. "warm": the engine's file is in the page cache; "cold": the system was asked to forget it.
"to first token" begins where the process was asked for, and holds all other parts but "four tokens"; the graph of the
first decode step is captured ("capture") before the first token is read. Limit: a copy from pinned memory, measured in
the same run.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path
from statistics import median
from typing import Any

import gpu_common as common

from llmc.runtime.cuda.driver import Driver

CHILD = """
import json, sys, time
started, spawned = time.perf_counter(), float(sys.argv[3])
from llmc.runtime.cuda.contents import EngineContents
from llmc.runtime.cuda.device import CudaDevice
from llmc.runtime.engine_file.file import EngineFile
from llmc.runtime.plan.executor import PagedExecutor
from llmc.runtime.scheduling.request import Request
from llmc.runtime.scheduling.scheduler import Scheduler
parts = {"interpreter": started - spawned, "imports": time.perf_counter() - started}
devices = []
def make(engine, profile, plan, slots):
    devices.append(CudaDevice(EngineContents(engine, profile), plan, slots))
    return devices[0]
at = time.perf_counter()
engine = EngineFile.open(sys.argv[1])
parts["open"] = time.perf_counter() - at
at = time.perf_counter()
executor = PagedExecutor(engine, sys.argv[2], make, max_batch=None)
parts["load"] = time.perf_counter() - at
parts |= {"load: " + name: seconds for name, seconds in devices[0].timings.items()}
parts["weights bytes"] = devices[0].budget.weights
at = time.perf_counter()
scheduler = Scheduler(executor)
request = scheduler.add(Request(tuple(range(1, 17)), 4, ignore_eos=True))
times = []
while not scheduler.idle:
    before = len(request.tokens)
    scheduler.step()
    times += [time.perf_counter()] * (len(request.tokens) > before)
parts["capture"] = devices[0].timings["capture"]
parts["first token"] = times[0] - at
parts["four tokens"] = times[-1] - at
parts["to first token"] = times[0] - spawned
executor.close()
print(json.dumps(parts))
"""


def main() -> None:
    parser = common.parser(__doc__ or "", "gpu_load")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--cold-rounds", type=int, help="as many as --rounds unless given; 0 for a file in memory")
    options = parser.parse_args()
    if options.rounds < 1:
        parser.error("--rounds: at least 1")
    compile(CHILD, "the child process", "exec")
    if options.dry_run:
        common.dry_run(options)
        return
    gpu = common.gpu()
    path = common.engine_for(options, gpu.sm)
    child(path, gpu.sm)  # the page cache, and the driver's own caches
    results: dict[str, list[dict[str, float]]] = {"warm": [], "cold": []}
    for _ in range(options.rounds):
        results["warm"].append(child(path, gpu.sm))
    for _ in range(options.rounds if options.cold_rounds is None else options.cold_rounds):
        drop_pages(path)
        results["cold"].append(child(path, gpu.sm))
    found: dict[str, Any] = {"machine": common.machine(gpu), "engine_bytes": path.stat().st_size}
    driver = Driver.load()
    found["pinned"] = common.upload_bandwidth(driver)
    driver.close()
    for kind, rounds in results.items():
        if not rounds:
            continue
        parts = {part: median(one[part] for one in rounds) for part in rounds[0]}
        speed = parts["weights bytes"] / parts["load: weights"]
        found[kind] = {**parts, "weights bytes/s": speed, "percent of a pinned copy": 100 * speed / found["pinned"]}
        first, share = parts["to first token"], 100 * speed / found["pinned"]
        print(
            f"{kind}: first token after {first:.2f} s; weights {speed / 1e9:.1f} GB/s, {share:.0f} % of a pinned copy"
        )
    common.write(options.out, {**found, "rounds": options.rounds})


def child(path: Path, sm: int) -> dict[str, float]:
    """The parts of one process's start, and how long the process took in all; all processes have one clock."""
    started = time.perf_counter()
    command = [sys.executable, "-c", CHILD, str(path), f"sm_{sm}", str(started)]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    return {**json.loads(done.stdout.splitlines()[-1]), "process": time.perf_counter() - started}


def drop_pages(path: Path) -> None:
    """Ask the system to forget the file's pages."""
    with open(path, "rb") as file:
        os.fsync(file.fileno())
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


if __name__ == "__main__":
    main()
