"""Prompts: a whole model's time for 2,048 tokens, and its large linears alone against cuBLAS, in the same run.

python benchmarks/gpu_prefill.py [--shape 8b] [--quantize fp8] [--activations fp8] [--prompt 2048] [--rounds 10]

`prompt_s` is from the request to its first token, through scheduler, executor and device, of another prompt every
round. Operations are those of the plan's price. Linears are the plan's own of its largest program, with its tiles,
every launch over other copies of the weights (`compiler/targets/cuda/tuning/measure.py`). Peer: torch's products of
the same shapes, and the largest of them as the limit of the whole.
"""

from __future__ import annotations

import time
from statistics import median
from typing import Any

import gpu_common as common
import numpy as np

from llmc.runtime.cuda.driver import Driver
from llmc.runtime.engine_file.file import EngineFile
from llmc.runtime.plan.formula import value
from llmc.runtime.plan.plan import Plan
from llmc.runtime.scheduling.scheduler import Request, Scheduler


def main() -> None:
    parser = common.parser(__doc__ or "", "gpu_prefill")
    parser.add_argument("--prompt", type=common.positive, default=2048)
    parser.add_argument("--rounds", type=common.positive, default=10)
    options = parser.parse_args()
    if options.prompt >= options.max_context:
        parser.error(f"--prompt {options.prompt}: below --max-context {options.max_context}")
    import gpu_linears  # brings torch and Triton in, which judging arguments does without

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
        linears = gpu_linears.large_linears(loaded.plan)
        rows = [gpu_linears.linear_row(driver, one, engine, loaded.plan, options.prompt) for one in linears]
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


if __name__ == "__main__":
    main()
