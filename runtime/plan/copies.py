"""Whether a GPU keeps the copies of weights that a plan's setup makes, or makes each anew in every step that reads it.

A copy costs memory once, or time in each step. It is kept where the cache still has half of the blocks that it would
have without copies: a step that reads 4-bit weights to write E4M3 takes about as long as the product that reads those.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace

from ..errors import ResourceError
from .budget import Budget, budget
from .plan import Argument, Launch, Plan, Program, Tensor

_SHARED = "copies"
"""Begins the names of the room that copies share which are made in steps."""


def copies_of(plan: Plan) -> frozenset[str]:
    """Names of the state that the setup makes."""
    return frozenset() if plan.setup is None else frozenset(n for one in plan.setup.kernels for n in one.writes)


def kept(with_copies: Mapping[str, int] | None, without: Mapping[str, int] | None) -> bool:
    """True if copies are kept: the blocks of each kind of cache with and without them, None if a plan does not fit."""
    if with_copies is None or without is None:
        return with_copies is not None
    return all(2 * with_copies[size] >= count for size, count in without.items())


def fitted(plan: Plan, *, weights: int, slots: int, state_slots: int, free: int, what: str) -> tuple[Plan, Budget]:
    """The plan with or without copies, and its budget; arguments and errors as those of `budget`."""

    def of(one: Plan) -> Budget:
        return budget(one, weights=weights, slots=slots, state_slots=state_slots, free=free, what=what)

    if plan.setup is None:
        return plan, of(plan)
    lean = in_steps(plan)
    without = of(lean)
    try:
        with_copies = of(plan)
    except ResourceError:
        return lean, without
    return (plan, with_copies) if kept(with_copies.blocks, without.blocks) else (lean, without)


def in_steps(plan: Plan) -> Plan:
    """The plan without copies: each launch that reads one follows the launch that makes it, in room that all share."""
    if plan.setup is None:
        return plan
    makers = {name: one for one in plan.setup.kernels for name in one.writes}
    places = {name: f"{_SHARED}.{one.writes.index(name)}" for name, one in makers.items()}
    tensors = {name: tensor for name, tensor in plan.tensors.items() if name not in places}
    for name, place in places.items():
        tensor = plan.tensors[name]
        size = max(int(tensors[place].shape[0]) if place in tensors else 0, math.prod(tensor.dims({})))
        tensors[place] = Tensor("state", tensor.dtype, (str(size),))
    return replace(
        plan,
        tensors=tensors,
        programs=tuple(_made_before_use(program, makers, places) for program in plan.programs),
        setup=None,
    )


def _made_before_use(program: Program, makers: Mapping[str, Launch], places: Mapping[str, str]) -> Program:
    launches = []
    for launch in program.launches:
        needed = {makers[name].writes: makers[name] for name in launch.tensors if name in makers}
        launches += [_moved(one, places) for one in needed.values()]
        launches.append(_moved(launch, places) if isinstance(launch, Launch) else launch)
    return replace(program, launches=tuple(launches))


def _moved(launch: Launch, places: Mapping[str, str]) -> Launch:
    arguments = tuple(
        one if one.tensor is None else Argument(tensor=places.get(one.tensor, one.tensor)) for one in launch.arguments
    )
    return replace(launch, arguments=arguments, writes=tuple(places.get(name, name) for name in launch.writes))
