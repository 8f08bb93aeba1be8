"""What each launch of a decode program takes alone: step A7, and the tables of other plans.

Launches of the same kernel and grid differ by their weights alone (those of the layers), so they are one row: a graph
of all of them, again and again until it has enough nodes, timed by the GPU. No launch finds its weights in the cache
that way, as no step does. What the rows sum to is held against the whole step.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from typing import Any

from bringup.bench import Bench
from bringup.decode import (
    HEADLINE,
    BenchDevice,
    cache_bytes,
    carried_plan,
    context_of,
    decode_program,
    inputs_at,
    launched,
    opened,
    reads_cache,
    share_of_read,
)
from bringup.step import Item, Step
from llmc.runtime.cuda.launches import BoundLaunch
from llmc.runtime.plan.budget import tensors_of
from llmc.runtime.plan.formula import value
from llmc.runtime.plan.plan import Plan, Program

WARP = 32
NODES = 32
"""Launches that a timed graph has at least."""
_ROUNDS = 8
_LIMIT = 15.0


@dataclass(frozen=True)
class Group:
    """Launches of a program with one kernel and grid: their places among those that have blocks at all."""

    module: int
    grid: tuple[int, ...]
    kernel: str
    label: str
    places: tuple[int, ...]
    launches: tuple[int, ...]
    """Their places in the program."""

    @property
    def name(self) -> str:
        return f"{self.module} {self.kernel} {'x'.join(map(str, self.grid))}"


def groups(plan: Plan, program: Program) -> list[Group]:
    """The distinct launches of a program for its limits, in the order of their first."""
    found: dict[tuple[int, tuple[int, ...]], list[tuple[int, int]]] = {}
    place = 0
    for index, launch in enumerate(program.kernels):
        grid = tuple(value(formula, program.limits) for formula in launch.grid)
        if all(grid):
            found.setdefault((launch.module, grid), []).append((place, index))
            place += 1
    return [
        Group(
            module,
            grid,
            plan.modules[module].kernel,
            program.kernels[pairs[0][1]].label,
            tuple(place for place, _ in pairs),
            tuple(index for _, index in pairs),
        )
        for (module, grid), pairs in found.items()
    ]


def bytes_of(plan: Plan, program: Program, group: Group, context: int, batch: int) -> float:
    """Bytes that one launch of a group must move, on average: its price, and what of the cache it reads."""
    caches = tensors_of(plan, "cache", plan.blocks_of(1))
    position = cache_bytes(plan, context, batch) / max(sum(caches.values()), 1)
    one = 0.0
    for index in group.launches:
        launch = program.kernels[index]
        one += value(launch.bytes, program.limits)
        one += position * sum(caches[name] for name in reads_cache(plan, launch))
    return one / len(group.launches)


def row(bench: Bench, name: str, *, at: int, batch: int, context: int, pdl: bool) -> dict[str, Any]:
    """The `at`-th distinct launch of a plan's decode program, timed."""
    device = opened(bench, name, pdl=pdl, batch=batch)
    index = decode_program(device.plan, batch)
    program = device.plan.programs[index]
    group = groups(device.plan, program)[at]
    with launched(device, index, inputs_at(device, index, context, batch)) as bound:
        seconds = alone(bench, device, [bound.kernels[place] for place in group.places])
    nbytes = bytes_of(device.plan, program, group, context, batch)
    return {
        "kernel": group.kernel,
        "label": group.label,
        "grid": group.grid,
        "count": len(group.places),
        "us": 1e6 * seconds,
        "bytes": nbytes,
        "bytes_per_s": nbytes / seconds if seconds else None,
        "percent_of_read": share_of_read(bench, nbytes / seconds) if seconds else None,
    }


def alone(bench: Bench, device: BenchDevice, launches: list[BoundLaunch]) -> float:
    """Seconds per launch, of a graph with all of them as often as it takes to have NODES."""
    driver, stream = device.driver, device.stream
    times = -(-NODES // len(launches))
    with ExitStack() as cleanup:
        driver.begin_capture(stream)
        try:
            driver.launch(not_early(device, launches[0]), *_rest(launches[0]))
            for one in ([*launches] * times)[1:]:
                driver.launch(one.config, *_rest(one))
        finally:
            graph = driver.end_capture(stream)
        cleanup.callback(driver.drop_graph, graph)
        seconds = bench.seconds(lambda: driver.launch_graph(graph, stream), rounds=_ROUNDS, warm=2, stream=stream)
    return seconds / (times * len(launches))


def not_early(device: BenchDevice, one: BoundLaunch) -> Any:
    """A launch's configuration without programmatic dependent launch: no kernel precedes the first of a graph."""
    config = one.config
    grid = config.gridDimX, config.gridDimY, config.gridDimZ
    return device.driver.config(grid, config.blockDimX // WARP, config.sharedMemBytes, device.stream)


def _rest(one: BoundLaunch) -> tuple[Any, int, str]:
    return one.function, one.parameters.address, one.label


def total(bench: Bench, step: str, rows: Iterable[str], whole: str) -> Mapping[str, Any]:
    """What the rows of a step sum to, against the item of the whole program."""
    found = [bench.result(f"{step}/{name}") for name in rows]
    known = [one for one in found if one]
    summed = sum(one["us"] * one["count"] for one in known) / 1e3
    ms = bench.result(whole).get("ms")
    share = {"percent_of_step": 100 * summed / ms} if ms else {}
    return {"ms": summed, "step_ms": ms, "rows": len(known), "missing": len(found) - len(known), **share}


def table(bench: Bench, step: str, name: str, *, batch: int, context: int, pdl: bool, whole: str) -> Iterator[Item]:
    """The items of a plan's table, and their sum last."""
    plan = bench.carry.plan(name)
    program = plan.programs[decode_program(plan, batch)]
    rows = [group.name for group in groups(plan, program)]
    for at, label in enumerate(rows):
        yield Item(label, partial(row, name=name, at=at, batch=batch, context=context, pdl=pdl), _LIMIT)
    yield Item("sum", partial(total, step=step, rows=rows, whole=whole))


def _items(bench: Bench) -> Iterable[Item]:
    context = context_of(carried_plan(bench.carry, HEADLINE))
    return table(bench, "launches", HEADLINE, batch=1, context=context, pdl=True, whole="decode/pdl, graphs")


STEP = Step("launches", 10, _items)
