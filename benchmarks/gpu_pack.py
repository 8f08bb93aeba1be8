"""Everything a GPU machine needs and cannot make: cubins, small engines, and what the interpreter says of them.

python benchmarks/gpu_pack.py [--out build/gpu-pack] [--sm 90] [--tokens 12] [--simulate fp8 none] [--kernels-only]

Needs Triton and no GPU. The cubins are those of all kernel cases, of the 8B shapes of `llmc kernels`, and of every
engine that `gpu_session.py` builds. With LLMC_CACHE naming the folder, llmc on the other machine finds them whatever
Triton is installed there. What the interpreter said is kept as long as engine and kernels are the same.
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
from collections.abc import Iterable
from dataclasses import asdict
from pathlib import Path

import numpy as np
from gpu_engines import CARRIED, SIMULATED, SMALL_ENGINES, EngineSpec, plan_digest
from gpu_session import PARTS
from gpu_tokens import traces

from llmc.compiler.build import lower, open_source
from llmc.compiler.targets import Limits, target_named
from llmc.compiler.targets.cuda.cubins.compile import Variant, variant_of
from llmc.compiler.targets.cuda.cubins.pack import write_pack
from llmc.compiler.targets.cuda.cubins.rebuild import variants_of
from llmc.compiler.targets.cuda.kernels import suites
from llmc.compiler.targets.simulate.device import SimulatedDevice
from llmc.recipes.recipe import Recipe
from llmc.runtime.engine_file.file import EngineFile
from llmc.runtime.plan.executor import PagedExecutor
from llmc.runtime.plan.plan import Plan
from llmc.runtime.progress import NO_PROGRESS

MOST_BYTES = 45 << 20
"""What may be carried besides the sources."""
PROMPTS = (5, 33, 70)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("build/gpu-pack"))
    parser.add_argument("--work", type=Path, default=Path("build/gpu"))
    parser.add_argument("--sm", type=int, default=90)
    parser.add_argument("--tokens", type=int, default=12, help="that the interpreter computes after each prompt")
    parser.add_argument("--simulate", nargs="*", default=SIMULATED, choices=SIMULATED)
    parser.add_argument("--kernels-only", action="store_true")
    options = parser.parse_args()
    shutil.rmtree(options.out / "kernels", ignore_errors=True)
    variants = {*of_kernels(options.sm)}
    for spec in dict.fromkeys([part.engine for part in PARTS if part.engine is not None] + [*SMALL_ENGINES]):
        variants |= set(of_engine(spec, options.work, options.sm))
    write_pack(options.out / "kernels", {options.sm: variants})
    print(f"{len(variants)} kernels, {size(options.out / 'kernels') / 2**20:.1f} MiB", flush=True)
    if not options.kernels_only:
        shutil.rmtree(options.out / "engines", ignore_errors=True)
        (options.out / "engines").mkdir()
        for spec in CARRIED:
            spec.built(options.out / "engines", options.sm, "cpu,sm_{}")
        for spec in SMALL_ENGINES:
            if spec.formats in options.simulate:
                folder = options.out / "engines" if spec in CARRIED else options.work
                engine = spec.built(folder, options.sm, "cpu,sm_{}")
                simulate(engine, options.out / "simulated", options.sm, options.tokens)
    total = size(options.out)
    print(f"{options.out}: {total / 2**20:.1f} MiB of at most {MOST_BYTES >> 20}")
    sys.exit(total > MOST_BYTES)


def of_kernels(sm: int) -> Iterable[Variant]:
    """What the kernel tests run, and what `llmc kernels` shows."""
    for suite in suites().values():
        calls = [*(case.call for case in suite.cases()), *suite.calls(sm)]
        yield from (variant_of(call) for call in calls if call.kernel.minimum_sm <= sm)


def of_engine(spec: EngineSpec, work: Path, sm: int) -> list[Variant]:
    """What the engine's plan launches; no weight is made."""
    target = f"sm_{sm}"
    recipe = Recipe(
        default_format=spec.quantize,
        targets=(target,),
        max_context=spec.max_context,
        max_batch=spec.max_batch,
        activations=spec.activations,
        kv=spec.kv,
    )
    checkpoint = open_source(spec.prepare(work), random_weights=None if spec.shape == "pico" else 1)
    graph = lower(checkpoint, recipe, spec.max_context, None)[2][target]
    limits = Limits(spec.max_context, spec.max_batch, checkpoint.config.dtype or "float32", spec.kv)
    emitted = target_named(target).emit(graph, limits, NO_PROGRESS)
    plan = Plan.from_json(emitted.sections[emitted.main], what=str(spec))
    print(f"{spec}: {len(plan.modules)} kernels", flush=True)
    return variants_of(plan, str(spec))


def simulate(engine: Path, folder: Path, sm: int, tokens: int) -> None:
    """The interpreter's tokens and best logits of an engine, unless they are known."""
    plan, path = plan_digest(engine, sm), folder / f"{engine.stem}.json"
    if path.exists() and json.loads(path.read_text())["plan"] == plan:
        return
    executor = PagedExecutor(EngineFile.open(engine), f"sm_{sm}", SimulatedDevice, max_batch=len(PROMPTS))
    random = np.random.default_rng(0)
    found = traces(executor, [random.integers(0, executor.vocab, length).tolist() for length in PROMPTS], tokens)
    executor.close()
    folder.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({"plan": plan, "traces": [asdict(one) for one in found]}) + "\n")
    print(f"{engine.stem}: {tokens} tokens after each of {len(PROMPTS)} prompts interpreted", flush=True)


def size(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


if __name__ == "__main__":
    main()
