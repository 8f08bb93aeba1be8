"""Prompts: a whole model's time for 2,048 tokens, and its large linears alone against cuBLAS, in the same run.

python benchmarks/gpu_prefill.py [--shape 8b] [--quantize fp8] [--activations fp8] [--prompt 2048] [--rounds 10]

`prompt_s` is from the request to its first token, through scheduler, executor and device, of another prompt every
round. Operations are those of the plan's price. Linears are the plan's own of its largest program, with its tiles,
every launch over other copies of the weights (`compiler/targets/cuda/measure.py`). Peer: torch's products of the same
shapes, and the largest of them as the limit of the whole.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import replace
from statistics import median
from typing import Any

import gpu_common as common
import gpu_torch
import numpy as np

from llmc.compiler.targets.cuda.compile import compile_variants, variant_of
from llmc.compiler.targets.cuda.kernels.tiles import Tile
from llmc.compiler.targets.cuda.measure import Effort, Form, measure
from llmc.compiler.targets.cuda.tune import KINDS, Linear, contents_of, linears_of
from llmc.runtime.cuda.driver import Driver
from llmc.runtime.engine_file import EngineFile
from llmc.runtime.formula import value
from llmc.runtime.plan import Module, Plan
from llmc.runtime.progress import NO_PROGRESS
from llmc.runtime.scheduler import Request, Scheduler

LARGE = ("large", "fp8")


def main() -> None:
    parser = common.parser(__doc__ or "", "gpu_prefill")
    parser.add_argument("--prompt", type=common.positive, default=2048)
    parser.add_argument("--rounds", type=common.positive, default=10)
    options = parser.parse_args()
    if options.prompt >= options.max_context:
        parser.error(f"--prompt {options.prompt}: below --max-context {options.max_context}")
    if options.dry_run:
        common.dry_run(options)
        return
    gpu = common.gpu()
    path = common.engine_for(options, gpu.sm)
    loaded = common.load(path, gpu.sm, max_batch=1)
    try:
        whole = prompts(loaded, options.prompt, options.rounds)
    finally:
        loaded.executor.close()
    driver = Driver.load()
    with EngineFile.open(path) as engine:
        rows = [linear_row(driver, one, engine, loaded.plan, options.prompt) for one in large_linears(loaded.plan)]
    driver.close()
    peers = [peer for row in rows for peer in row["torch_tflops"].values()]
    whole |= {"percent_of_torch": 100 * whole["tflops"] / max(peers)} if peers else {}
    said = f"{options.prompt} tokens in {1e3 * whole['prompt_s']:.1f} ms, {whole['tflops']:.0f} TFLOP/s"
    print(said + (f", {whole['percent_of_torch']:.0f} % of torch's fastest product" if peers else ""))
    facts = {name: getattr(options, name) for name in ("shape", "quantize", "activations", "prompt", "rounds")}
    common.write(options.out, {"machine": common.machine(gpu), **facts, **whole, "linears": rows})


def prompts(loaded: common.Loaded, length: int, rounds: int) -> dict[str, Any]:
    """Seconds to the first token after prompts that share nothing; the first round warms up."""
    random = np.random.default_rng(0)
    taken = []
    for _ in range(rounds + 1):
        scheduler = Scheduler(loaded.executor)
        prompt = tuple(random.integers(0, loaded.executor.vocab, length).tolist())
        began = time.perf_counter()
        scheduler.add(Request(prompt, 1, ignore_eos=True))
        while not scheduler.idle:
            for event in scheduler.step():
                if event.output.error is not None:
                    raise event.output.error
        taken.append(time.perf_counter() - began)
    seconds = median(taken[1:])
    operations = sum(operations_of(loaded.plan, chunk) for chunk in chunks(length, loaded.executor.max_prefill))
    return {
        "prompt_s": seconds,
        "prompt_s_all": sorted(taken[1:]),
        "tokens_per_s": length / seconds,
        "operations": operations,
        "tflops": operations / seconds / 1e12,
    }


def chunks(length: int, most: int) -> list[int]:
    """The steps in which a prompt is computed."""
    return [min(most, length - start) for start in range(0, length, most)]


def operations_of(plan: Plan, tokens: int) -> int:
    """What a step of that many prompt tokens of one sequence must compute."""
    program = plan.program_for(decode=False, tokens=tokens, sequences=1, rows=1)
    sizes = {"tokens": tokens, "sequences": 1, "rows": 1}
    return int(sum(value(launch.operations, sizes) for launch in program.launches))


def large_linears(plan: Plan) -> list[Linear]:
    """The distinct linears over the tokens of the largest program, those with the most bytes first."""
    most = plan.programs[-1].tokens
    return [linear for linear in linears_of(plan) if linear.kind in LARGE and linear.tokens == most]


def linear_row(driver: Driver, linear: Linear, engine: EngineFile, plan: Plan, tokens: int) -> dict[str, Any]:
    """One linear's speed, and torch's with the same shape."""
    linear = replace(linear, sizes={**linear.sizes, "tokens": tokens})
    call = linear.call(tile_of(linear, plan), plan.sm)
    (cubin,) = compile_variants([variant_of(call)], plan.sm, progress=NO_PROGRESS).values()
    weights = engine.manifest.profiles[f"sm_{plan.sm}"].weights
    (seconds,) = measure(
        driver,
        [Form(call, cubin)],
        contents_of(linear, engine, plan, weights),
        linear.weights,
        linear.sizes,
        effort=Effort(rounds=10, copies=8),
        within_limit=lambda: True,
    ) or [None]
    assert seconds is not None, "the first form is what others are compared with"
    theirs = gpu_torch.products(tokens, linear.n, linear.k, linear.kind == "fp8")
    return row(linear, tokens, seconds, theirs)


def row(linear: Linear, tokens: int, seconds: float, theirs: Mapping[str, float]) -> dict[str, Any]:
    """Times as speeds; theirs: torch's seconds by name of the product."""
    operations = 2 * tokens * linear.n * linear.k
    peers = {name: operations / taken / 1e12 for name, taken in theirs.items()}
    ours = operations / seconds / 1e12
    return {
        "kind": linear.kind,
        "format": linear.format,
        "n": linear.n,
        "k": linear.k,
        "tokens": tokens,
        "seconds": seconds,
        "tflops": ours,
        "torch_tflops": peers,
        "percent_of_torch": 100 * ours / max(peers.values()) if peers else None,
    }


def tile_of(linear: Linear, plan: Plan) -> Tile:
    """The tile that the plan has for a linear."""
    module = next(
        module for module in plan.modules if KINDS.get(module.kernel) == linear.kind and _same(module, linear, plan)
    )
    made = module.constants
    blocks = made["BLOCK_N"], made["BLOCK_K"], made["BLOCK_M"], made.get("SPLITS", 1)
    return Tile(*map(int, blocks), warps=module.warps, stages=module.stages)


def _same(module: Module, linear: Linear, plan: Plan) -> bool:
    """Whether a module computes a linear in the plan's largest program."""
    used = {launch.module for launch in plan.programs[-1].launches}
    shape = module.constants["N"], module.constants["K"], module.constants.get("FORMAT", "fp8")
    return plan.modules.index(module) in used and shape == (linear.n, linear.k, linear.format)


if __name__ == "__main__":
    main()
