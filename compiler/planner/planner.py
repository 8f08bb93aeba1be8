"""Prices every deployment of a model on machines, and chooses the best by a goal; no weight is read."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from ...recipes.goal import Goal
from ...recipes.machines.table import Machine
from ...recipes.recipe import Recipe
from ...runtime.chips import target_for
from .all_formats import Refused, Subject, lower_all
from .candidates import Candidate, Pricer, degrees
from .choose import Choice, chosen
from .rates import FITTED, Rates
from .serve import Workload

_WITH_FP8, _WITHOUT_FP8 = "sm_90", "sm_80"
"""The targets that are lowered for all chips with and without FP8: their tiles differ from those of others, and so does
the code, but neither what launches read and compute nor the bytes of buffers, weights and caches."""


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


def priced_target(machine: Machine) -> str:
    """The target whose plans stand for those of a machine's chip."""
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
    default all numbers from 1 to what fits are tried.

    Raises:
        Unsupported: a rope type, or a precision of a recipe, does not support this model or target.
    """
    layers = len(subject.config.decoder.layers)
    widest = max(machine.gpus for machine in machines)
    heads = subject.config.decoder.layers[0].mixer.heads
    tps = [tp for tp in range(1, widest + 1) if heads % tp == 0]
    candidates: list[Candidate] = []
    refused: list[Refused] = []
    for found in lower_all(subject, recipes, tps):
        if isinstance(found, Refused):
            refused.append(found)
            continue
        recipe, pieces = found
        pricer = Pricer(pieces, recipe, load, rates)
        for machine in machines:
            if priced_target(machine) != recipe.targets[0]:
                continue
            for tp, pp in degrees(machine, layers):
                if tp == pieces.tp:
                    made = pricer.candidate(machine, pp, batch)
                    own = replace(made.recipe, targets=(target_for(machine.chip.sm) or recipe.targets[0],))
                    candidates.append(replace(made, recipe=own))
    return Planned(goal, load, chosen(candidates, goal, load), tuple(refused))
