"""Measures a step's host time (scheduler, inputs, outputs) with a device that does nothing: a GPU must not wait for it.

python benchmarks/host_step.py [--shape 8b] [--quantize fp8] [--max-batch 256] [--batch 1 64 256] [--context 1500]

The host works on a step while the GPU computes the one before, so a GPU never waits while the ratio, host over GPU, is
below 1. The GPU's time here is the plan's price on an H200, what its launches move at the speed of a copy: less than
any real step takes, so the ratio is an upper bound. Copies and launches of the driver are not in the host's time.
"""

from __future__ import annotations

import time
from collections.abc import Collection, Mapping
from statistics import median
from typing import Any

import gpu_common as common
import numpy as np

from llmc.runtime.chips import CHIPS
from llmc.runtime.engine_file.file import EngineFile
from llmc.runtime.machine import cpu_count, cpu_name
from llmc.runtime.plan.executor import PagedExecutor
from llmc.runtime.plan.plan import Plan
from llmc.runtime.plan.price import Roofline, price
from llmc.runtime.scheduling.request import Request
from llmc.runtime.scheduling.scheduler import Scheduler

CHIP = CHIPS["h200"]
PROMPT, WARM = 64, 20


class Idle:
    """A device (`plan.executor.Device`) that returns token 7 at once, always."""

    def __init__(self, engine: EngineFile, profile: str, plan: Plan, slots: int) -> None:
        self.blocks: Mapping[str, int] = {cache.size: slots * cache.blocks for cache in plan.caches}
        self.notes = ()

    def run(
        self, program: int, sizes: Mapping[str, int], inputs: Mapping[str, np.ndarray], wanted: Collection[str]
    ) -> int:
        return sizes["rows"]

    def read(self, handle: int) -> Mapping[str, np.ndarray]:
        return {"sampled": np.full(handle, 7, np.int32), "status": np.zeros(handle, np.int32)}

    def close(self) -> None:
        pass


def main() -> None:
    parser = common.parser(__doc__ or "", "host_step")
    parser.set_defaults(max_batch=256)
    parser.add_argument("--batch", type=common.positive, nargs="+", default=[1, 64, 256])
    parser.add_argument("--context", type=common.positive, default=1500)
    parser.add_argument("--steps", type=common.positive, default=400)
    options = parser.parse_args()
    if max(options.batch) > options.max_batch:
        parser.error(f"--batch {options.batch}: at most --max-batch {options.max_batch}")
    if options.dry_run:
        common.dry_run(options)
        return
    path = common.engine_for(options, CHIP.sm)
    rows = [measure(path, batch, options) for batch in options.batch]
    machine = f"{cpu_name()}, {cpu_count()} threads"
    common.write(options.out, {"machine": machine, "engine": path.stem, "gpu": f"price on {CHIP.name}", "steps": rows})


def measure(path: Any, batch: int, options: Any) -> dict[str, Any]:
    executor = PagedExecutor(EngineFile.open(path), f"sm_{CHIP.sm}", Idle, max_batch=batch)
    scheduler = Scheduler(executor)
    random = np.random.default_rng(0)
    for _ in range(batch):
        prompt = tuple(random.integers(0, executor.vocab, PROMPT).tolist())
        scheduler.add(Request(prompt, options.steps, ignore_eos=True))
    times = []
    while not scheduler.idle:
        started = time.perf_counter()
        scheduler.step()
        times.append(time.perf_counter() - started)
    executor.close()
    host, gpu = median(times[WARM:-WARM]), priced(path, batch, options.context)
    return {"batch": batch, "host_s": host, "gpu_s": gpu, "host_over_gpu": host / gpu}


def priced(path: Any, batch: int, context: int) -> float:
    """Seconds of a decode step at the speed of a copy."""
    with EngineFile.open(path) as engine:
        facts, model = engine.manifest.profiles[f"sm_{CHIP.sm}"], engine.manifest.model
        plan = Plan.from_json(engine.section(facts.graph), what=str(path))
    program = next(program for program in plan.programs if program.decode and program.sequences >= batch)
    roofline = Roofline(CHIP.reachable_bandwidth, CHIP.bf16)
    return price(plan, program, roofline, sizes=program.limits, context=context, heads=model.heads).seconds


if __name__ == "__main__":
    main()
