"""How long a decode program takes: replayed without reading its tokens, on an engine without weights.

Step A6: the headline. What other plans, batches and inputs need is here too: `opened`, `inputs_at`, `replay`, `moved`.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np

from bringup.bench import Bench
from bringup.carry import FP8, Carry
from bringup.step import Item, Step
from bringup.weightless import Weightless, kind_of, scatter
from llmc.runtime.cuda.contents import Contents
from llmc.runtime.cuda.device import CudaDevice
from llmc.runtime.cuda.driver import Driver
from llmc.runtime.cuda.launches import BoundProgram
from llmc.runtime.errors import LlmcError
from llmc.runtime.plan.budget import tensors_of
from llmc.runtime.plan.formula import value
from llmc.runtime.plan.inputs import idle_inputs
from llmc.runtime.plan.plan import BLOCK_TOKENS, Launch, Plan, Program

HEADLINE = FP8
CONTEXT = 1024
REPLAYS, WARM = 50, 5
_LIMIT = 20.0


class BenchDevice(CudaDevice):
    """A device whose parts can be timed one by one."""

    @property
    def plan(self) -> Plan:
        return self._plan

    @property
    def driver(self) -> Driver:
        return self._driver

    @property
    def stream(self) -> Any:
        return self._stream

    def scatter(self) -> None:
        """Random keys and values: a cache of zeros is read with less power, and faster."""
        by_kind: dict[str, list[tuple[int, int]]] = {}
        for name, nbytes in tensors_of(self._plan, "cache", self.blocks).items():
            kind = kind_of(name, self._plan.tensors[name])
            by_kind.setdefault(kind, []).append((self._allocated.tensors[name], nbytes))
        for kind, places in by_kind.items():
            scatter(self._driver, kind, places)

    def choose(self, *, graphs: bool) -> None:
        """Replay decode programs as graphs from now on, or not."""
        self._replays = graphs

    def bound(self, program: int, sizes: Mapping[str, int]) -> BoundProgram:
        return self._bound_program(program, sizes)

    def send(self, program: int, sizes: Mapping[str, int], inputs: Mapping[str, np.ndarray]) -> None:
        """Put a step's inputs where its launches read them."""
        _, slot = self._ring.next()
        self._copy_inputs(self._bound_program(program, sizes), inputs, slot)
        self._driver.record(slot.done, self._stream)
        self._driver.wait(self._stream)


def context_of(plan: Plan, context: int = CONTEXT) -> int:
    """Positions, or as many as the plan has room for."""
    return min(context, plan.max_blocks * BLOCK_TOKENS)


def carried_plan(carry: Carry, name: str) -> Plan:
    """A plan by its name.

    Raises:
        LlmcError: it is not carried.
    """
    if name not in carry.plans:
        raise LlmcError(f"expected a carried plan {name!r}", found=", ".join(carry.plans) or "none")
    return carry.plan(name)


def opened(
    bench: Bench, name: str, *, pdl: bool, graphs: bool = True, batch: int = 1, contents: Contents | None = None
) -> BenchDevice:
    """A carried plan on the GPU for at most `batch` sequences; `contents` instead of random weights and caches.

    It stays open until another is asked for, or the step ends (`Bench.release`).
    """

    def make() -> BenchDevice:
        plan = bench.carry.plan(name)
        given = contents or bench.loader.contents(Weightless(bench.carry, name, plan))
        device = BenchDevice(given, replace(plan, pdl=pdl), batch, driver=Driver.load())
        if contents is None:
            device.scatter()
        return device

    device: BenchDevice = bench.held(("plan", name, pdl, batch, id(contents)), make)
    device.choose(graphs=graphs)
    return device


def decode_program(plan: Plan, batch: int) -> int:
    """The index of the smallest decode program for `batch` sequences.

    Raises:
        LlmcError: there is none.
    """
    chosen = plan.program_for(decode=True, tokens=batch, sequences=batch, rows=batch)
    return plan.programs.index(chosen)


def inputs_at(device: BenchDevice, program: int, context: int, batch: int | None = None) -> dict[str, np.ndarray]:
    """Inputs of a decode step at `context` positions per sequence, greedy; sequences share blocks if there are few."""
    chosen = device.plan.programs[program]
    count = chosen.sequences if batch is None else batch
    inputs = idle_inputs(device.plan, chosen.limits)
    inputs["positions"][:] = context - 1
    inputs["seq_lens"][:count] = context
    inputs["query_start_loc"][:] = np.minimum(np.arange(inputs["query_start_loc"].size), count)
    inputs["logits_indices"][:] = np.arange(inputs["logits_indices"].size)
    tables = inputs["block_tables"]
    each = -(-context // BLOCK_TOKENS)
    tables[:, :each] = (np.arange(tables.shape[0])[:, None] * each + np.arange(each)) % device.blocks["blocks"]
    last = (context - 1) // BLOCK_TOKENS
    inputs["slot_mapping"][:count] = tables[:count, last] * BLOCK_TOKENS + (context - 1) % BLOCK_TOKENS
    return inputs


def replay(
    device: CudaDevice,
    program: int,
    sizes: Mapping[str, int],
    inputs: Mapping[str, np.ndarray],
    *,
    rounds: int = REPLAYS,
    warm: int = WARM,
) -> float:
    """Seconds per step, by the host's clock around all of `rounds`; the host runs ahead as when serving."""
    for _ in range(warm):
        device.read(device.run(program, sizes, inputs, {"sampled"}))
    began = time.perf_counter()
    for _ in range(rounds - 1):
        device.run(program, sizes, inputs, {"sampled"})
    device.read(device.run(program, sizes, inputs, {"sampled"}))
    return (time.perf_counter() - began) / rounds


def cache_bytes(plan: Plan, context: int, batch: int) -> int:
    """Keys and values that a step reads in all layers."""
    return batch * context * sum(tensors_of(plan, "cache", plan.blocks_of(1)).values()) // BLOCK_TOKENS


def reads_cache(plan: Plan, launch: Launch) -> list[str]:
    """The caches that a launch reads and does not write."""
    named = {a.tensor for a in launch.arguments if a.tensor is not None} - {*launch.writes}
    return sorted(name for name in named if name in plan.tensors and plan.tensors[name].kind == "cache")


def moved(plan: Plan, program: Program, context: int, batch: int) -> int:
    """Bytes that a step must move: its launches' prices, and the cache."""
    return sum(value(one.bytes, program.limits) for one in program.launches) + cache_bytes(plan, context, batch)


def share_of_read(bench: Bench, bytes_per_s: float) -> float | None:
    """Percent of the read-only bandwidth that step A2 found, where it did."""
    ceiling = bench.result("ceilings/read").get("bytes_per_s")
    return 100 * bytes_per_s / ceiling if ceiling else None


def measured(
    bench: Bench, name: str, *, batch: int, context: int, pdl: bool, graphs: bool, slots: int | None = None
) -> dict[str, Any]:
    """The row of a plan's decode program. slots: sequences that the plan is loaded for, `batch` unless given."""
    device = opened(bench, name, pdl=pdl, graphs=graphs, batch=slots or batch)
    program = decode_program(device.plan, batch)
    limits = device.plan.programs[program].limits
    seconds = replay(device, program, limits, inputs_at(device, program, context, batch))
    nbytes = moved(device.plan, device.plan.programs[program], context, batch)
    return {
        "plan": name,
        "batch": batch,
        "context": context,
        "pdl": pdl,
        "graphs": graphs,
        "launches": len(device.plan.programs[program].launches),
        "ms": 1e3 * seconds,
        "tokens_per_s": batch / seconds,
        "bytes": nbytes,
        "bytes_per_s": nbytes / seconds,
        "percent_of_read": share_of_read(bench, nbytes / seconds),
        "load_s": device.timings,
        "notes": list(device.notes),
    }


@contextmanager
def launched(device: BenchDevice, program: int, inputs: Mapping[str, np.ndarray]) -> Iterator[BoundProgram]:
    """A program's launches for its limits, its inputs in place and its graph not in the way."""
    sizes = device.plan.programs[program].limits
    device.send(program, sizes, inputs)
    yield device.bound(program, sizes)
    device.driver.wait(device.stream)


def _items(bench: Bench) -> Iterable[Item]:
    context = context_of(carried_plan(bench.carry, HEADLINE))
    for pdl in (False, True):
        for graphs in (True, False):
            label = f"{'pdl' if pdl else 'plain'}, {'graphs' if graphs else 'launches'}"
            found: Callable[[Bench], Mapping[str, Any]] = partial(
                measured, name=HEADLINE, batch=1, context=context, pdl=pdl, graphs=graphs
            )
            yield Item(label, found, _LIMIT)


STEP = Step("decode", 25, _items)
