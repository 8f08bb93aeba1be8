"""What comes nearest to a goal that nothing reaches, and what a model would fit in that fits in nothing."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

from ...recipes.goal import Goal
from ...recipes.machines.table import Machine, machines
from ..planner.candidates import Candidate
from ..planner.choose import Choice
from ..planner.planner import Planned
from .asked import FORMATS, Asked
from .frontier import Place


def nearest(planned: Planned) -> Choice | None:
    """The candidate whose figures miss the goal by least, as factors of the limits; None if one reaches it, or none
    fits."""
    found = [Place(one.candidate, point) for one in planned.choices for point in one.candidate.points]
    if planned.best is not None or not found:
        return None
    best = min(found, key=lambda place: (_missed(place, planned.goal), _rank(place, planned.goal)))
    misses = planned.goal.misses(best.candidate.figures(best.point))
    return Choice(best.candidate, best.point, "; ".join(misses))


def _missed(place: Place, goal: Goal) -> float:
    """The sum of the logarithms by which figures miss their limits."""
    figures = place.candidate.figures(place.point)
    total = 0.0
    for limit in goal.limits:
        figure = figures.get(limit.name)
        if limit.miss(figure):
            total += abs(math.log(figure / limit.limit)) if figure and limit.limit else math.inf
    return total


def _rank(place: Place, goal: Goal) -> float:
    return goal.rank(place.candidate.figures(place.point))


def larger(asked: Asked) -> list[list[Machine]]:
    """For each chip that was asked for, the machines of more GPUs, ascending."""
    most: dict[str, int] = {}
    for one in asked.machines:
        most[one.chip.name] = max(one.gpus, most.get(one.chip.name, 0))
    return [
        sorted((one for one in machines() if one.chip.name == chip and one.gpus > gpus), key=lambda one: one.gpus)
        for chip, gpus in most.items()
    ]


def smaller(asked: Asked) -> Asked:
    """The same question for the weight formats that were not asked for."""
    return replace(asked, formats=tuple(one for one in FORMATS if one not in asked.formats), activations=None, kv=None)


def first_fitting(candidates: Sequence[Candidate]) -> Candidate | None:
    """Of those that fit, the one of the fewest GPUs, of these the one of the most bits; None if none fits."""
    fitting = (one for one in candidates if one.points)
    return min(fitting, key=lambda one: (one.machine.gpus, -one.bits, one.split.ranks, one.needs.total), default=None)
