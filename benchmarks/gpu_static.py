"""What a plan's linears do to an H100, told without one: blocks per multiprocessor, instructions, bytes, and the price.

python benchmarks/gpu_static.py [--name NAME] [--against FILE]      prints a table, writes results/gpu_static_NAME.json

Decode steps of Llama-3.1-8B at a context of 1,024, of 1 to 512 sequences. A wave is what the chip holds at a time, by
registers, threads and shared memory of the compiled kernel.
"""

from __future__ import annotations

import argparse
import json
import math
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from gpu_engines import EngineSpec
from packing.plans import Drafted, drafted

from llmc.compiler.targets.cuda.cubins.compile import Cubin, Specialization, compile_all
from llmc.compiler.targets.cuda.cubins.figures import Figures, figures_of
from llmc.compiler.targets.cuda.cubins.sass import disassembler
from llmc.runtime.chips import MULTIPROCESSORS, chip
from llmc.runtime.plan.formula import value
from llmc.runtime.plan.plan import Launch, Program
from llmc.runtime.plan.price import Roofline, price
from llmc.runtime.progress import NO_PROGRESS

SM, CONTEXT, HEADS = 90, 1024, 32
RESULTS = Path(__file__).resolve().parent / "results"
BATCHES = (1, 8, 128, 256, 512)
SPECS = {
    "fp8, activations fp8": EngineSpec("8b", "fp8", 512, 2048, activations="fp8", kv="fp8"),
    "bf16": EngineSpec("8b", "none", 512, 2048),
    "nvfp4, activations fp8": EngineSpec("8b", "nvfp4", 512, 2048, activations="fp8", kv="fp8"),
}
COPY, RATE = 3.0e12, {"fp8": 1.2e15, "none": 0.7e15}
"""Bytes/s of a copy on an H100, and operations/s of good products by the recipe's activations."""
LINEARS = ("linear_small", "linear_large", "linear_fp8")


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--name", default="now")
    parser.add_argument("--against", type=Path, help="a result of this program, shown beside")
    options = parser.parse_args()
    before = json.loads(options.against.read_text()) if options.against else {}
    found = {name: dict(steps(spec)) for name, spec in SPECS.items()}
    for name, by_batch in found.items():
        for batch, step in by_batch.items():
            show(name, batch, step, before.get(name, {}).get(batch))
    path = RESULTS / f"gpu_static_{options.name}.json"
    path.write_text(json.dumps(found, indent=1) + "\n")
    print(f"written: {path.relative_to(RESULTS.parent.parent)}")


def steps(spec: EngineSpec) -> Iterator[tuple[str, dict[str, Any]]]:
    """Decode steps by their number of sequences."""
    with tempfile.TemporaryDirectory() as folder:
        made = drafted(spec, Path(folder), SM)
    programs = [next(one for one in made.plan.programs if one.decode and one.tokens == batch) for batch in BATCHES]
    wanted = {made.specializations[one.module] for program in programs for one in linears(made, program)}
    cubins = compile_all(wanted, SM, progress=NO_PROGRESS)
    program = disassembler()
    figures = figures_of(cubins, SM, program) if program else {}
    for one in programs:
        yield str(one.tokens), step_of(made, one, spec, cubins, figures)


def launches_a_layer(made: Drafted, program: Program) -> int:
    """From the second layer's q|k|v to the third's."""
    kernels = [made.plan.modules[one.module].kernel for one in program.kernels]
    at = [index for index, name in enumerate(kernels) if name in LINEARS]
    return at[8] - at[4]


def linears(made: Drafted, program: Program) -> list[Launch]:
    """Of the second layer, which is like most: q|k|v, o, gate|up, down."""
    found = [one for one in program.kernels if made.plan.modules[one.module].kernel in LINEARS]
    return found[4:8]


def step_of(
    made: Drafted,
    program: Program,
    spec: EngineSpec,
    cubins: Mapping[Specialization, Cubin],
    figures: Mapping[Specialization, Figures],
) -> dict[str, Any]:
    roofline = Roofline(COPY, RATE[spec.activations])
    priced = price(made.plan, program, roofline, sizes=program.limits, context=CONTEXT, heads=HEADS)
    return {
        "launches a layer": launches_a_layer(made, program),
        "GB": round(priced.bytes / 1e9, 3),
        "price, ms": round(1e3 * priced.seconds, 3),
        "linears": [
            linear_of(made.specializations[one.module], one, program, cubins, figures) for one in linears(made, program)
        ],
    }


def linear_of(
    specialization: Specialization,
    launch: Launch,
    program: Program,
    cubins: Mapping[Specialization, Cubin],
    figures: Mapping[Specialization, Figures],
) -> dict[str, Any]:
    cubin, told, constants = cubins[specialization], figures.get(specialization), dict(specialization.constants)
    blocks = math.prod(value(size, program.limits) for size in launch.grid)
    resident = MULTIPROCESSORS[SM].resident(32 * specialization.warps, cubin.code.registers, cubin.shared)
    processors = chip("h100").processors
    return {
        "n x k": f"{constants['N']} x {constants['K']}",
        "tile": f"{constants['BLOCK_N']} x {constants['BLOCK_M']}, {constants.get('SPLITS', 1)} parts",
        "blocks a multiprocessor": round(blocks / processors, 2),
        "waves": round(blocks / processors / resident, 2),
        "spills": cubin.code.spills,
        "instr/weight": told.instr_per_weight if told else None,
        "in flight": told.in_flight if told else None,
    }


def show(name: str, batch: str, step: Mapping[str, Any], before: Mapping[str, Any] | None) -> None:
    was = before or {"linears": [{}] * len(step["linears"])}
    print(f"{name}, batch {batch}: {_beside({key: one for key, one in step.items() if key != 'linears'}, was)}")
    for one, other in zip(step["linears"], was["linears"], strict=True):
        print("   ", _beside(one, other))


def _beside(now: Mapping[str, Any], before: Mapping[str, Any]) -> str:
    return "; ".join(f"{key} {before[key]} -> {one}" if key in before else f"{key} {one}" for key, one in now.items())


if __name__ == "__main__":
    main()
