"""Predicts times on a GPU before any has run: floors from the prices of the carried plans, and guesses above them.

python benchmarks/gpu_predictions.py                               rewrites predictions.json and docs/gpu-predictions.md

Results of a call are printed beside these numbers (`bringup/predicted.py`). The guesses were made before any
measurement, on 2026-11-28, and again on 2026-11-29 for plans with fewer launches, blocks for all multiprocessors, fewer
instructions, and weights that are read before a launch waits. Later runs of this script only follow the plans.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from bringup import batches, carry, prefill, throughput
from bringup.predicted import FILE
from gpu_engines import PLANS
from packing.plans import all_drafted

from llmc.runtime.plan.plan import Plan
from llmc.runtime.plan.price import Roofline, price

DATE = "2026-11-29"
TEXT = Path(__file__).resolve().parent.parent / "docs" / "gpu-predictions.md"
COPY = {"H100": 3.0e12, "H200": 4.3e12}
"""Bytes/s of a copy on the device, read and written counted: what floors are computed with."""
REACHED = {"fp8": 1.2e15, "bf16": 0.7e15}
"""Operations/s that good products of large matrices reach on both, which have the same processors."""
SM = 90
HEADS = 32
"""Heads of Llama-3 that read one cached head."""
DECODE = {
    carry.FP8: ((0.79, 0.88), (0.74, 0.83)),
    carry.BF16: ((0.88, 0.93), (0.85, 0.90)),
    carry.NVFP4: ((0.62, 0.71), (0.56, 0.64)),
    carry.INT4: ((0.63, 0.73), (0.58, 0.66)),
    carry.SMALL_BF16: ((0.70, 0.83), (0.64, 0.75)),
}
"""Share of the floor on an H100, launched plainly and early, at batch 1 and 8."""
MANY = {
    carry.MANY: (0.65, 0.66, 0.64),
    carry.MANY_BF16_CACHE: (0.70, 0.70, 0.68),
    carry.NVFP4_FP8: (0.52, 0.66, 0.64),
}
"""The same at batch 64, 128 and 256, launched early."""
PROMPT = {carry.FP8: 0.66, carry.BF16: 0.66}
MORE_MS = {carry.FP8: 0.06, carry.MANY: 0.07}
"""Milliseconds that two thresholds add to a step, by `sampling_price.py`: searches among the largest logits, a block to
a row. Before 2026-11-29, when each passed over the vocabulary eight times, 1.0 and 1.1 were predicted."""
FIXED: Mapping[str, Mapping[str, float]] = {
    "ceilings/launch": {"us": 2.5},
    "ceilings/graph node": {"us": 1.5},
    "ceilings/graph node, pdl": {"us": 0.9},
    **{f"prompts/fp8 {shape} fp8 2048": {"best/tflops": 1000.0} for shape in ("6144x4096", "4096x4096", "4096x14336")},
    "prompts/fp8 28672x4096 fp8 2048": {"best/tflops": 1080.0},
    "prompts/large 28672x4096 dense 2048": {"best/tflops": 650.0},
    "torch/torch": {
        "tflops/28672x4096/matmul bf16": 700.0,
        "tflops/28672x4096/_scaled_mm fp8, scales of tensor": 1250.0,
    },
    "engine/build": {"seconds": 20.0},
    "engine/cold start": {"to first token": 3.0},
    "engine/throughput": {"idle_share": 0.03},
}
"""Same on both chips, because they are not memory-bound."""
READ_OVER_COPY = 1.04
SERVED_SHARE, SERVED_CONTEXT = 0.5, 1100


@dataclass(frozen=True)
class Row:
    """A predicted time. name: "step/item" of the result; floor and ms by chip; share: of the floor, on an H100."""

    name: str
    share: float
    floor: Mapping[str, float]
    ms: Mapping[str, float]


def main() -> None:
    argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0]).parse_args()
    with tempfile.TemporaryDirectory() as folder:
        plans = {name: one.plan for name, one in all_drafted(PLANS, Path(folder), SM).items()}
    rows = list(predicted(plans))
    FILE.write_text(json.dumps({"date": DATE, "chips": chips(rows)}, indent=1) + "\n")
    TEXT.write_text(text(rows))
    print(f"{FILE.name}: {len(rows)} times on {len(COPY)} chips; {TEXT.name}")


def predicted(plans: Mapping[str, Plan]) -> Iterator[Row]:
    """Every time with a floor."""
    for name, by_batch in DECODE.items():
        for batch, shares in zip(batches.BATCHES, by_batch, strict=True):
            for pdl, share in zip((False, True), shares, strict=True):
                floor = step(plans[name], name, batch, batches.CONTEXT)
                yield row(f"batches/{batches.row_name(name, batch, pdl)}", share, floor)
                if (name, batch) == (carry.FP8, 1):
                    yield row(f"decode/{'pdl' if pdl else 'plain'}, graphs", share, floor)
    for name, shares in MANY.items():
        plan = plans[name]
        for batch, share in zip(throughput.BATCHES, shares, strict=True):
            yield row(
                f"throughput/{throughput.row_name(name, batch)}", share, step(plan, name, batch, throughput.CONTEXT)
            )
    for name, share in PROMPT.items():
        yield row(f"prefill/{prefill.row_name(name)}", share, whole(plans[name], name))
    floor = step(plans[carry.MANY], carry.MANY, 256, SERVED_CONTEXT)
    yield row("engine/throughput", SERVED_SHARE, floor)


def step(plan: Plan, name: str, batch: int, context: int) -> dict[str, float]:
    """Milliseconds of a decode step on an ideal chip, by chip: a launch takes the time of its bytes or operations."""
    program = plan.program_for(decode=True, tokens=batch, sequences=batch, rows=batch)
    made = {
        chip: price(plan, program, roofline(chip, name), sizes=program.limits, context=context, heads=HEADS)
        for chip in COPY
    }
    return {chip: 1e3 * found.seconds for chip, found in made.items()}


def whole(plan: Plan, name: str) -> dict[str, float]:
    """Milliseconds of a step with one whole prompt on an ideal chip, by chip."""
    sizes = {"tokens": prefill.TOKENS, "sequences": 1, "rows": 1}
    program = plan.program_for(decode=False, **sizes)
    made = {chip: price(plan, program, roofline(chip, name), sizes=sizes, context=0, heads=HEADS) for chip in COPY}
    return {chip: 1e3 * found.seconds for chip, found in made.items()}


def roofline(chip: str, name: str) -> Roofline:
    narrow = PLANS[name].activations == "fp8"
    return Roofline(COPY[chip], REACHED["fp8" if narrow else "bf16"])


def row(name: str, share: float, floor: Mapping[str, float]) -> Row:
    """The time above an H100's floor is latency and arithmetic, which are the same on an H200."""
    more = floor["H100"] * (1 / share - 1)
    return Row(name, share, floor, {chip: ms + more for chip, ms in floor.items()})


def sampling(plan: str) -> str:
    return f"sampling/{throughput.row_name(plan, dict(throughput.SAMPLED_AT)[plan])}"


def chips(rows: list[Row]) -> dict[str, dict[str, dict[str, float]]]:
    """By chip, name and field."""
    made: dict[str, dict[str, dict[str, float]]] = {}
    for chip, copy in COPY.items():
        known: dict[str, dict[str, float]] = {"ceilings/copy": {"bytes_per_s": copy}}
        known["ceilings/read"] = {"bytes_per_s": READ_OVER_COPY * copy}
        known |= {name: dict(fields) for name, fields in FIXED.items()}
        known |= {sampling(name): {"more_ms": more} for name, more in MORE_MS.items()}
        for one in rows:
            field = "decode_step_ms" if one.name == "engine/throughput" else "ms"
            known.setdefault(one.name, {})[field] = round(one.ms[chip], 3)
        made[chip] = known
    return made


def text(rows: list[Row]) -> str:
    """The predictions as a page of text."""
    copies = " and ".join(f"{speed / 1e12:g} TB/s on an {chip}" for chip, speed in COPY.items())
    products = " and ".join(f"{kind} {speed / 1e15:g}" for kind, speed in REACHED.items())
    told = [
        "# What a GPU is expected to do",
        "",
        f"Predicted on {DATE}, before any measurement, by `benchmarks/gpu_predictions.py`, which rewrites this file.",
        "",
        "Floor: launches of the carried plan take what their bytes or operations take on a perfect chip, one after",
        f"another, and the cache is read once. Memory: {copies}, what a copy reaches.",
        f"Operations: {products} PFLOP/s, what good products reach. The share of the floor is a guess for an H100.",
        "What lies above the floor there is latency and arithmetic; an H200 has the same processors, so it is added to",
        "the floor of an H200 as it is.",
        "",
        "The floors are those of what is carried, and differ from a first estimate by hand: a head has its",
        "weights' format (by hand 2.72 ms for 8B FP8 with a head in bf16, 1.53 for NVFP4 with one in int8), and a",
        "prompt's attention and norms are priced after its products (24 ms by hand, of those alone). On 2026-11-28,",
        "with eight launches a layer, o and down on a quarter of the chip at batch 128, 3.8 instructions a weight of",
        "NVFP4 and sums in float32 every 128 columns, the shares were 82 % for 8B FP8, 90 % for bf16, 61 % for NVFP4",
        "and 75 % for 1B bf16 at batch 1, launched early, 45 to 55 % at batch 128, and 56 % of a prompt in FP8.",
        "",
        "| result | share of the floor, H100 | H100 floor, ms | H100, ms | H200 floor, ms | H200, ms |",
        "|---|---|---|---|---|---|",
    ]
    for one in rows:
        times = " | ".join(f"{one.floor[chip]:.2f} | {one.ms[chip]:.2f}" for chip in COPY)
        told.append(f"| {one.name} | {100 * one.share:.0f} % | {times} |")
    told += ["", "Not bound by memory, of both chips:", "", "| result | field | predicted |", "|---|---|---|"]
    told += [f"| {name} | {field} | {value:g} |" for name, fields in FIXED.items() for field, value in fields.items()]
    told += [f"| {sampling(name)} | more_ms | {more:g} |" for name, more in MORE_MS.items()]
    return "\n".join([*told, ""])


if __name__ == "__main__":
    main()
