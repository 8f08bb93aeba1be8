"""What the planner says of memory is what the runtime's own budget decides, for every stage, in both directions."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from functools import cache

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llmc.compiler.planner.candidates import Pricer
from llmc.compiler.planner.rates import FITTED
from llmc.compiler.planner.serve import Workload
from llmc.compiler.targets.cuda.kernels.linear.tiles import COUNTERS
from llmc.recipes.machines.table import Machine, machine_named
from llmc.runtime.engine_file.split import Split
from llmc.runtime.errors import ResourceError
from llmc.runtime.plan.budget import CACHE_SHARE, Budget, aligned
from llmc.runtime.plan.copies import fitted
from llmc.runtime.plan.plan import BLOCK_TOKENS, Plan
from llmc.runtime.plan.price import usable

from .test_pieces import BATCH, CONTEXT, RECIPES, pieces_of, real_plans

CASES = (("llama", "fp8", "tp1"), ("llama", "fp8", "tp2-pp3"), ("windows", "int4", "pp2"), ("windows", "int4", "tp4"))
UNKNOWN = aligned(4 * COUNTERS)
"""Bytes by which the planner may count more than a plan has: counters of parts of K that no launch of it needs."""


@pytest.fixture(autouse=True, scope="module")
def no_advice() -> Iterator[None]:
    """Without the search for a smaller batch that would fit, which a refusal names and no test here reads."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("llmc.runtime.plan.budget._smallest_change", lambda *_: "")
        yield


def machine_with(free: int, ranks: int) -> Machine:
    """A machine of 8 GPUs of which a job of so many ranks may use `free` bytes each."""
    machine = machine_named("8xh200")
    more = usable(1 << 50, ranks) - (1 << 50)
    return replace(machine, chip=replace(machine.chip, memory=free - more))


def planned(name: str, recipe: str, split: Split, free: int, length: int) -> int:
    """The requests at once that the planner has memory for."""
    pricer = Pricer(pieces_of(name, recipe, split.tp), RECIPES[recipe], Workload(length - 1, 1), FITTED)
    return pricer.memory(machine_with(free, split.ranks), split.pp)[2]


@cache
def plans_of(name: str, recipe: str, split: Split) -> tuple[Plan, ...]:
    return tuple(plan for _, plan in real_plans(name, recipe, split))


def decided(plan: Plan, free: int) -> Budget | None:
    """What the runtime decides; None if it refuses to load the plan."""
    weights = sum(aligned(one.bytes({})) for one in plan.tensors.values() if one.kind == "weight")
    try:
        return fitted(plan, weights=weights, slots=BATCH, state_slots=BATCH, free=free, what="the profile")[1]
    except ResourceError:
        return None


@settings(max_examples=60, deadline=None)
@given(st.sampled_from(CASES), st.floats(0.0, 1.0), st.integers(-(1 << 17), 1 << 17))
def test_a_plan_that_fits_loads_and_one_that_does_not_is_refused(case: tuple[str, str, str], part: float, near: int):
    name, recipe, text = case
    split = Split.parse(text)
    plans = plans_of(name, recipe, split)
    least = max(map(_least, plans))
    free = int(least * (1 + 2 * part * part)) + near
    fits = planned(name, recipe, split, free, CONTEXT)
    loaded = [decided(plan, free) for plan in plans]
    if fits:
        assert all(loaded), "it fits on paper, and the runtime refuses it"
    else:
        assert not all(decided(plan, free - UNKNOWN) for plan in plans), "the runtime loads what does not fit on paper"
    if all(loaded):
        whole = min(_requests(plan, one, CONTEXT) for plan, one in zip(plans, loaded, strict=True) if one)
        assert fits <= whole <= planned(name, recipe, split, free + 2 * UNKNOWN, CONTEXT)


@settings(max_examples=20, deadline=None)
@given(st.sampled_from(CASES), st.integers(2, CONTEXT), st.floats(1.0, 4.0))
def test_shorter_requests_take_the_blocks_that_they_need(case: tuple[str, str, str], length: int, times: float):
    name, recipe, text = case
    split = Split.parse(text)
    plans = plans_of(name, recipe, split)
    free = int(max(map(_least, plans)) * times) + UNKNOWN
    loaded = [decided(plan, free) for plan in plans]
    assert all(loaded)
    whole = min(_requests(plan, one, length) for plan, one in zip(plans, loaded, strict=True) if one)
    assert planned(name, recipe, split, free, length) <= min(BATCH, whole)


def _least(plan: Plan) -> int:
    """About the bytes from which a plan is loaded."""
    with_room = decided(plan, 1 << 50)
    assert with_room is not None
    one = sum(with_room.block[cache.size] * cache.blocks for cache in plan.caches)
    return int(with_room.fixed + one / CACHE_SHARE)


def _requests(plan: Plan, found: Budget, length: int) -> int:
    """Requests of a length whose blocks a loaded plan has."""
    blocks = {cache.size: min(cache.blocks, -(-length // BLOCK_TOKENS)) for cache in plan.caches}
    return min(BATCH, *(found.blocks[size] // count for size, count in blocks.items()))
