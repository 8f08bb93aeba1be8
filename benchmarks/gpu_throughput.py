"""Decodes as many requests as fit at once: output tokens/s, and the share of decoding time in which the GPU is idle.

python benchmarks/gpu_throughput.py [--requests 0] [--input 1000] [--output 1000] [--max-batch 256]

`tokens_per_s` counts output tokens over the whole run, prompts included. A decode step is one graph, and steps between
two with prompts are a phase. `idle_share` is 1 less the time inside graphs over the time from the beginning of a
phase's first graph to the end of its last, all by the GPU's clock: the time of copies of inputs and results, and of
waiting for the host. Limit: a copy's bandwidth, measured in the same run, over the bytes of weights and cache of a
step in the middle of the answers.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from itertools import groupby, pairwise
from statistics import median
from typing import Any

import gpu_common as common
import numpy as np

from llmc.runtime.cuda.driver import Driver
from llmc.runtime.plan.budget import tensors_of
from llmc.runtime.plan.formula import value
from llmc.runtime.plan.plan import BLOCK_TOKENS
from llmc.runtime.scheduling.request import Request
from llmc.runtime.scheduling.scheduler import Scheduler


class TimedDriver(Driver):
    """Every graph stands between two events with timing, which are kept by phase: what launches without a graph, and
    so is a step with prompts, ends one."""

    phases: list[list[tuple[Any, Any]]]

    @classmethod
    def load(cls, ordinal: int = 0) -> TimedDriver:
        made = super().load(ordinal)
        made.phases = [[]]
        return made

    def launch(self, config: Any, function: Any, parameters: int, what: str) -> None:
        super().launch(config, function, parameters, what)
        if self.phases[-1]:
            self.phases.append([])

    def launch_graph(self, graph: Any, stream: Any) -> None:
        before, after = self.event(timing=True), self.event(timing=True)
        self.record(before, stream)
        super().launch_graph(graph, stream)
        self.record(after, stream)
        self.phases[-1].append((before, after))

    def forget(self) -> None:
        """Drop the events so far."""
        for event in (event for phase in self.phases for pair in phase for event in pair):
            self.drop_event(event)
        self.phases = [[]]

    def spans(self) -> list[list[tuple[float, float]]]:
        """Beginning and end of every graph, in seconds after the first of its phase."""
        return [
            [(self.elapsed(phase[0][0], before), self.elapsed(phase[0][0], after)) for before, after in phase]
            for phase in self.phases
            if phase
        ]

    def close(self) -> None:
        self.forget()
        super().close()


def main() -> None:
    parser = common.parser(__doc__ or "", "gpu_throughput")
    parser.set_defaults(max_batch=256, max_context=2304, activations="fp8")
    parser.add_argument("--requests", type=int, default=0, help="0: as many as the engine and the memory hold at once")
    parser.add_argument("--input", type=common.positive, default=1000)
    parser.add_argument("--output", type=common.positive, default=1000)
    options = parser.parse_args()
    if options.requests < 0 or options.input + options.output > options.max_context:
        parser.error(f"--input and --output together: at most --max-context {options.max_context}")
    if options.dry_run:
        common.dry_run(options)
        return
    gpu = common.gpu()
    loaded = common.load(common.engine_for(options, gpu.sm), gpu.sm, kind=TimedDriver)
    try:
        copy = common.copy_bandwidth(loaded.driver, nbytes=256 << 20)
        found = throughput(loaded, options.requests, options.input, options.output, copy)
    finally:
        loaded.executor.close()
    print(
        f"{found['requests']} requests: {found['tokens_per_s']:.0f} tokens/s, while all decode "
        f"{found['decode_tokens_per_s']:.0f}; GPU without work {100 * found['idle_share']:.1f} %; "
        f"{found['percent_of_copy']:.0f} % of a copy"
    )
    facts = {name: getattr(options, name) for name in ("shape", "quantize", "activations", "kv", "input", "output")}
    common.write(options.out, {"machine": common.machine(gpu), **facts, "copy_bytes_per_s": round(copy), **found})


def fitting(loaded: common.Loaded, length: int) -> int:
    """The number of requests of `tokens` tokens that run at once."""
    return min(loaded.executor.sequences, loaded.device.blocks["blocks"] // -(-length // BLOCK_TOKENS))


def throughput(loaded: common.Loaded, requests: int, length: int, output: int, copy: float) -> dict[str, Any]:
    """Run the requests twice; the first run warms up with short answers."""
    driver, executor = loaded.driver, loaded.executor
    assert isinstance(driver, TimedDriver)
    count = requests or fitting(loaded, length + output)
    _run(loaded, count, 1, min(output, 4))
    driver.forget()
    seconds, steps = _run(loaded, count, length, output)
    phases = driver.spans()
    batch = min(count, executor.sequences)
    full = _full(steps, batch)
    program = loaded.plan.program_for(decode=True, tokens=batch, sequences=batch, rows=batch)
    moved = sum(value(launch.bytes, program.limits) for launch in program.launches)
    position = sum(tensors_of(loaded.plan, "cache", loaded.plan.blocks_of(1)).values()) // BLOCK_TOKENS
    moved += batch * position * (length + output // 2)
    step = median(full) if full else float("nan")
    return {
        "requests": count,
        "at once": batch,
        "blocks": loaded.device.blocks["blocks"],
        "seconds": seconds,
        "tokens_per_s": count * output / seconds,
        "decode_step_s": step,
        "decode_tokens_per_s": batch / step,
        "graphs": sum(map(len, phases)),
        "idle_share": idle_share(phases),
        "step_bytes": moved,
        "percent_of_copy": 100 * moved / step / copy,
    }


def _run(loaded: common.Loaded, count: int, length: int, output: int) -> tuple[float, list[tuple[float, int]]]:
    """Seconds of all, and when each step's tokens came and how many."""
    scheduler = Scheduler(loaded.executor)
    random = np.random.default_rng(length)
    prompts = [tuple(random.integers(0, loaded.executor.vocab, length).tolist()) for _ in range(count)]
    requests = [scheduler.add(Request(prompt, output, ignore_eos=True)) for prompt in prompts]
    began, steps, before = time.perf_counter(), [], 0
    while not scheduler.idle:
        scheduler.step()
        now, tokens = time.perf_counter(), sum(len(request.tokens) for request in requests)
        steps.append((now, tokens - before))
        before = tokens
    seconds = time.perf_counter() - began
    for request in requests:
        request.wait()
    return seconds, steps


def _full(steps: Sequence[tuple[float, int]], batch: int) -> list[float]:
    """Seconds between steps that both gave a token to every sequence."""
    phases = (list(group) for full, group in groupby(steps, lambda step: step[1] == batch) if full)
    return [b[0] - a[0] for phase in phases for a, b in pairwise(phase)]


def idle_share(phases: Sequence[Sequence[tuple[float, float]]]) -> float:
    """The share of the phases' time outside all spans."""
    inside = sum(stop - start for phase in phases for start, stop in phase)
    whole = sum(phase[-1][1] - phase[0][0] for phase in phases)
    return 1 - inside / whole if whole else float("nan")


if __name__ == "__main__":
    main()
