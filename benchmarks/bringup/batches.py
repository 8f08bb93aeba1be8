"""Step B1: decode steps of every format at batch 1 and 8, with and without programmatic dependent launch.

A plan is loaded twice, once for each; both batches are programs of the same load.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from functools import partial

from bringup import carry, launches
from bringup.bench import Bench
from bringup.decode import measured
from bringup.step import Item, Step

PLANS = (carry.FP8, carry.BF16, carry.NVFP4, carry.INT4, carry.SMALL_BF16)
BATCHES = (1, 8)
CONTEXT = 1024
_LIMIT = 15.0


def items(bench: Bench, *, early: tuple[bool, ...] = (True, False)) -> Iterator[Item]:
    """A row for each carried plan, batch, and way of launching. early: with programmatic dependent launch."""
    for name in PLANS:
        if name not in bench.carry.plans:
            continue
        for pdl in early:
            for batch in BATCHES:
                run = partial(
                    measured, name=name, batch=batch, context=CONTEXT, pdl=pdl, graphs=True, slots=max(BATCHES)
                )
                yield Item(row_name(name, batch, pdl), run, _LIMIT)


def row_name(plan: str, batch: int, pdl: bool) -> str:
    return f"{plan}, batch {batch}, {'pdl' if pdl else 'plain'}"


def table(name: str, step: str, seconds: float, *, batch: int = 1, context: int = CONTEXT, whole: str = "") -> Step:
    """A step: what each launch of a plan's decode program takes alone. whole: the item that has the program's time."""
    held = whole or f"batches/{row_name(name, batch, True)}"

    def told(bench: Bench) -> Iterable[Item]:
        if name not in bench.carry.plans:
            return ()
        return launches.table(bench, step, name, batch=batch, context=context, pdl=True, whole=held)

    return Step(step, seconds, told)


STEP = Step("batches", 50, items)
TABLES = (table(carry.FP8, "launches fp8", 8), table(carry.NVFP4, "launches nvfp4", 8))
TUNED = Step("batches", 20, partial(items, early=(True,)))
"""Step C2: the same of the tuned plans, as they are served."""
