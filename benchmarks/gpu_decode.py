"""Decode speed at batch 1 (and others): tokens/s, bytes/s, and percent of a copy's bytes/s measured in the same run.

python benchmarks/gpu_decode.py [--shape 8b] [--quantize fp8] [--batch 1 8] [--prompt 1024] [--tokens 256] [--rounds 3]

`step_s` is the whole path of a token: scheduler, executor, device, one step ahead. `gpu_step_s` is the decode program
alone, replayed without reading its tokens. Bytes are those the plan's launches must move (weights, activations)
and the cache's keys and values at the middle of the answer, for the program alone at the end of the prompt.
"""

from __future__ import annotations

import time
from statistics import median
from typing import Any

import gpu_common as common
import numpy as np
from bringup.decode import replay

from llmc.runtime.plan.budget import tensors_of
from llmc.runtime.plan.formula import value
from llmc.runtime.plan.inputs import idle_inputs
from llmc.runtime.plan.plan import BLOCK_TOKENS, Program
from llmc.runtime.scheduling.request import Request
from llmc.runtime.scheduling.scheduler import Scheduler

REPLAYS = 100
WARM = 8


def main() -> None:
    parser = common.parser(__doc__ or "", "gpu_decode")
    parser.add_argument("--batch", type=int, nargs="+", default=[1])
    parser.add_argument("--prompt", type=int, default=1024)
    parser.add_argument("--tokens", type=int, default=256)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--early", action="store_true", help="programmatic dependent launch")
    options = parser.parse_args()
    if not 1 <= min(options.batch) <= max(options.batch) <= options.max_batch:
        parser.error(f"--batch {options.batch}: from 1 to --max-batch {options.max_batch}")
    if options.tokens <= 2 * WARM or options.prompt < 1 or options.rounds < 1:
        parser.error(f"more than {2 * WARM} --tokens, and a --prompt and --rounds")
    if options.prompt + options.tokens > options.max_context:
        parser.error(f"--prompt and --tokens together: at most --max-context {options.max_context}")
    if options.dry_run:
        common.dry_run(options)
        return
    gpu = common.gpu()
    loaded = common.load(common.engine_for(options, gpu.sm), gpu.sm, max_batch=max(options.batch), early=options.early)
    try:
        copy = common.copy_bandwidth(loaded.driver)
        rows = [measure(loaded, batch, options, copy) for batch in options.batch]
    finally:
        loaded.executor.close()
    facts = {
        "machine": common.machine(gpu),
        "shape": options.shape,
        "quantize": options.quantize,
        "activations": options.activations,
        "kv": options.kv,
        "early": options.early,
    }
    for row in rows:
        speed, share = row["bytes_per_s"] / 1e12, row["percent_of_copy"]
        print(f"batch {row['batch']}: {row['tokens_per_s']:.1f} tokens/s, {speed:.2f} TB/s, {share:.0f} % of a copy")
    common.write(options.out, {**facts, "copy_bytes_per_s": round(copy), "decode": rows})


def measure(loaded: common.Loaded, batch: int, options: Any, copy: float) -> dict[str, Any]:
    program = next(p for p in loaded.plan.programs if p.decode and p.sequences >= batch)
    steps = sorted(generate(loaded, batch, options) for _ in range(options.rounds))
    context = options.prompt + options.tokens // 2
    moved = sum(value(launch.bytes, program.limits) for launch in program.launches)
    position = batch * sum(tensors_of(loaded.plan, "cache", loaded.plan.blocks_of(1)).values()) // BLOCK_TOKENS
    cache = position * context
    step, seconds = median(steps), replayed(loaded, program, options.prompt)
    return {
        "batch": batch,
        "context": context,
        "step_s": step,
        "step_s_all": steps,
        "tokens_per_s": batch / step,
        "launches": len(program.launches),
        "bytes": moved + cache,
        "cache_bytes": cache,
        "bytes_per_s": (moved + cache) / step,
        "percent_of_copy": 100 * (moved + cache) / step / copy,
        "gpu_step_s": seconds,
        "gpu_percent_of_copy": 100 * (moved + position * options.prompt) / seconds / copy,
    }


def generate(loaded: common.Loaded, batch: int, options: Any) -> float:
    """Seconds per step while all requests decode: the first and last few steps do not count."""
    scheduler = Scheduler(loaded.executor)
    random = np.random.default_rng(0)
    vocab = loaded.executor.vocab
    prompts = [tuple(random.integers(0, vocab, options.prompt).tolist()) for _ in range(batch)]
    requests = [scheduler.add(Request(prompt, options.tokens, ignore_eos=True)) for prompt in prompts]
    counts = [0] * batch
    started = last = 0.0
    steps = 0
    while not scheduler.idle:
        scheduler.step()
        now, before = time.perf_counter(), counts
        counts = [len(request.tokens) for request in requests]
        if not started and min(counts) >= WARM:
            started = now
        elif started and counts != before and max(counts) <= options.tokens - WARM:
            last, steps = now, steps + 1
    for request in requests:
        request.wait()
    return (last - started) / steps


def replayed(loaded: common.Loaded, program: Program, context: int) -> float:
    """Seconds per replay of a decode program over the first blocks, timed by the host around many."""
    sizes, index = program.limits, loaded.plan.programs.index(program)
    inputs = idle_inputs(loaded.plan, sizes)
    count = min(program.sequences, loaded.device.blocks["blocks"])
    inputs["positions"][:] = context - 1
    inputs["seq_lens"][:count] = context
    inputs["block_tables"][:] = (
        np.arange(inputs["block_tables"].size).reshape(inputs["block_tables"].shape) % loaded.device.blocks["blocks"]
    )
    return replay(loaded.device, index, sizes, inputs, rounds=REPLAYS, warm=WARM)


if __name__ == "__main__":
    main()
