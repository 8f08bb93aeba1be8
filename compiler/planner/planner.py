"""Prices every deployment of a model on machines, and chooses the best by a goal; no weight is read."""

from __future__ import annotations

import gc
import sys
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from functools import cache, partial
from math import prod
from multiprocessing import get_context

from ...recipes.goal import Goal
from ...recipes.machines.table import Machine
from ...recipes.recipe import Recipe
from ...runtime.chips import target_for
from ...runtime.dtypes import FP4_FORMATS
from ...runtime.machine import cpu_count
from ..families.spec import DecoderSpec
from .all_formats import AllFormats, Logical, Refused, Subject
from .candidates import Candidate, Pricer
from .choose import Choice, chosen
from .rates import FITTED, Rates
from .serve import Workload

Degrees = tuple[int, int]
"""Of tensor and of expert parallelism; shards of a stage are their product."""
_WITH_FP8, _WITHOUT_FP8 = "sm_90", "sm_80"
"""The targets that are lowered for all chips with and without FP8: their tiles differ from those of others, and so does
the code, but neither what launches read and compute nor the bytes of buffers, weights and caches."""

_WITH_FP4 = "sm_100"
"""The same for chips with FP4, of recipes with 4-bit activations."""
_BATCHES = (64, 8, 1)
"""Batches of engines that are tried where the recipe's leaves no memory for one request."""
_WORTH_A_PROCESS = 12
"""Degrees and recipes to lower, of 50 ms each."""


@dataclass(frozen=True)
class Planned:
    """All candidates, best first, and what cannot be one."""

    goal: Goal
    load: Workload
    choices: tuple[Choice, ...]
    refused: tuple[Refused, ...]

    @property
    def best(self) -> Choice | None:
        """None if no candidate reaches the goal."""
        return next((one for one in self.choices if not one.lost), None)


def priced_target(machine: Machine, activations: str | None) -> str:
    """The target whose plans stand for those of a machine's chip, with activations in this format."""
    if machine.chip.fp4 and activations in FP4_FORMATS:
        return _WITH_FP4
    return _WITH_FP8 if machine.chip.fp8 else _WITHOUT_FP8


def plan(
    subject: Subject,
    machines: Sequence[Machine],
    recipes: Sequence[Recipe],
    load: Workload,
    goal: Goal,
    *,
    batch: int | None = None,
    rates: Rates = FITTED,
) -> Planned:
    """Price all recipes on all machines.

    A recipe is for the machines whose priced target it has. `batch` is the number of requests at once on a machine; by
    default the powers of 2 up to what fits, and what fits, are tried.

    Candidates that this model or a target does not support are in `refused`.
    """
    most = max(machine.gpus for machine in machines)
    degrees = _degrees(subject.config.decoder, most)
    logical = Logical(subject)
    logical.prepare(recipes)
    price = partial(_candidates, logical, machines, recipes, load, batch, rates)
    few = len(degrees) * len(recipes) < _WORTH_A_PROCESS
    found = [one for some in _on_all_cores(price, degrees, few=few) for one in some]
    candidates = [one for one in found if isinstance(one, Candidate)]
    refused = dict.fromkeys(one for one in found if isinstance(one, Refused))
    return Planned(goal, load, chosen(candidates, goal, load), tuple(refused))


def _degrees(spec: DecoderSpec, most: int) -> list[Degrees]:
    """Tensor and expert parallelism of up to `most` shards that cut no head.

    Experts are cut like all else, or are whole, or in halves: of some more ways between these none is tried.
    """
    shards = [one for one in range(1, most + 1) if not any(layer.mixer.heads % one for layer in spec.layers)]
    experts = min((stack.experts for stack in spec.stacks().values()), default=1)
    tps = {one: dict.fromkeys((one, *((1, 2) if one % 2 == 0 else (1,)))) for one in shards}
    return [(tp, one // tp) for one in shards for tp in tps[one] if one // tp <= experts]


_Found = list[Candidate | Refused]
_Price = Callable[[Degrees], _Found]


def _candidates(
    logical: Logical,
    machines: Sequence[Machine],
    recipes: Sequence[Recipe],
    load: Workload,
    batch: int | None,
    rates: Rates,
    degrees: Degrees,
) -> _Found:
    """Every recipe and number of stages, with so many shards, on the machines that the recipe is for."""
    shards = prod(degrees)
    formats, layers = AllFormats(logical, *degrees), len(logical.subject.config.decoder.layers)
    found: _Found = []
    for recipe in recipes:
        fitting = [one for one in machines if one.gpus >= shards and _priced_with(recipe, one)]
        pieces = formats.pieces(recipe) if fitting else None
        if isinstance(pieces, Refused):
            found.append(pieces)
        elif pieces is not None:
            pricer = Pricer(pieces, recipe, load, rates)
            smaller = cache(partial(_pricer_of_batch, formats, recipe, load, rates))
            for machine in fitting:
                target = target_for(machine.chip.sm) or recipe.targets[0]
                for pp in range(1, min(layers, machine.gpus // shards) + 1):
                    made = pricer.candidate(machine, pp, batch)
                    if batch is None and not made.most:
                        made = _of_smaller_batch(smaller, recipe, made) or made
                    if target != recipe.targets[0]:
                        made = replace(made, recipe=replace(made.recipe, targets=(target,)))
                    found.append(made)
    return found


def _priced_with(recipe: Recipe, machine: Machine) -> bool:
    return priced_target(machine, recipe.activations) == recipe.targets[0]


def _pricer_of_batch(formats: AllFormats, recipe: Recipe, load: Workload, rates: Rates, batch: int) -> Pricer | None:
    """What prices engines of a recipe for at most `batch` requests; None if they cannot be built."""
    smaller = replace(recipe, max_batch=batch)
    pieces = formats.pieces(smaller)
    return None if isinstance(pieces, Refused) else Pricer(pieces, smaller, load, rates)


def _of_smaller_batch(pricer_of: Callable[[int], Pricer | None], recipe: Recipe, made: Candidate) -> Candidate | None:
    """A candidate without memory for the recipe's batch as an engine of a smaller one, whose workspace is smaller."""
    if made.needs.weights + made.needs.cache > made.usable:
        return None
    for batch in (one for one in _BATCHES if one < recipe.max_batch):
        pricer = pricer_of(batch)
        found = None if pricer is None else pricer.candidate(made.machine, made.split.pp, None)
        if found is not None and found.most:
            return found
    return None


def _on_all_cores(price: _Price, degrees: Sequence[Degrees], *, few: bool) -> Iterator[_Found]:
    """What `price` gives for each degree, in order; `few`: it is less work than starting processes.

    Other processes are forks, which share what this one has imported: one that starts anew imports for longer than it
    prices.
    """
    workers = min(cpu_count(), len(degrees))
    if workers < 2 or few or sys.platform != "linux":
        yield from map(price, degrees)
        return
    context = get_context("fork")
    with ProcessPoolExecutor(workers, mp_context=context, initializer=_begin, initargs=(price,)) as pool:
        yield from pool.map(_priced, degrees)


_prices: list[_Price] = []
"""What a process of the pool prices with: it has it by its fork, for graphs nest too deeply to be sent."""


def _begin(price: _Price) -> None:
    gc.disable()
    _prices[:] = [price]


def _priced(degrees: Degrees) -> _Found:
    (price,) = _prices
    return price(degrees)
