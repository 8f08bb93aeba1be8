"""Steps B4 and B5: decode steps of many sequences, and what choosing tokens by chance costs.

Steps are replayed as in B1, at a context in the middle of long answers, over the memory's whole cache. Sampled steps
have a temperature, top-k and top-p in every row; greedy ones of the same plan are what they are held against.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import partial
from typing import Any

from bringup import batches, carry
from bringup.bench import Bench
from bringup.decode import decode_program, inputs_at, measured, opened, replay
from bringup.step import Item, Step

CONTEXT = 1500
BATCHES = (64, 128, 256)
PLANS = (carry.MANY, carry.MANY_BF16_CACHE, carry.NVFP4_FP8)
SAMPLED = {"temperature": 0.8, "top_k": 40, "top_p": 0.95, "seed": 1}
SAMPLED_AT = ((carry.FP8, 1), (carry.MANY, 64))
_LIMIT = 20.0


def items(bench: Bench) -> Iterator[Item]:
    """A row for each carried plan and batch."""
    for name in PLANS:
        if name in bench.carry.plans:
            for batch in BATCHES:
                run = partial(
                    measured, name=name, batch=batch, context=CONTEXT, pdl=True, graphs=True, slots=max(BATCHES)
                )
                yield Item(row_name(name, batch), run, _LIMIT)


def row_name(plan: str, batch: int) -> str:
    return f"{plan}, batch {batch}"


def sampled(bench: Bench, name: str, batch: int) -> Mapping[str, Any]:
    """Milliseconds of a greedy and of a sampled step, and of steps with only one of the two thresholds."""
    device = opened(bench, name, pdl=True, batch=batch)
    program = decode_program(device.plan, batch)
    found: dict[str, float] = {}
    kinds = {
        "greedy": (),
        "sampled": (*SAMPLED,),
        "top_k": ("temperature", "top_k", "seed"),
        "no threshold": ("temperature", "seed"),
    }
    for label, given in kinds.items():
        inputs = inputs_at(device, program, batches.CONTEXT, batch)
        for key in given:
            inputs[key][:] = SAMPLED[key]
        found[label] = 1e3 * replay(device, program, device.plan.programs[program].limits, inputs)
    return {"ms": found["sampled"], "more_ms": found["sampled"] - found["greedy"], "all_ms": found}


def _sampled_items(bench: Bench) -> Iterator[Item]:
    for name, batch in SAMPLED_AT:
        if name in bench.carry.plans:
            yield Item(row_name(name, batch), partial(sampled, name=name, batch=batch), _LIMIT)


STEP = Step("throughput", 25, items)
TABLES = tuple(
    batches.table(
        name, f"launches {label}", 8, batch=batch, context=CONTEXT, whole=f"throughput/{row_name(name, batch)}"
    )
    for name, label, batch in ((carry.MANY, "batch 128", 128), (carry.NVFP4_FP8, "nvfp4 batch 128", 128))
)
SAMPLING = Step("sampling", 12, _sampled_items)
