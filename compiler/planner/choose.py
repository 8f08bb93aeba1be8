"""Chooses the best candidate by a goal, and says of each other one why it lost."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from ...recipes.goal import Goal, shown_figure
from ...recipes.machines.table import Machine
from .candidates import Candidate
from .serve import Served, Workload

_GB = 1e9


@dataclass(frozen=True)
class Choice:
    """A candidate with the number of requests at once that suits a goal best."""

    candidate: Candidate
    point: Served | None
    """None if the candidate has no memory for the load."""
    lost: str
    """Why it is not the best; "" of the best."""


def chosen(candidates: Sequence[Candidate], goal: Goal, load: Workload) -> tuple[Choice, ...]:
    """All candidates, the best first: on the cheapest machine on which one reaches the goal, the best by its objective.

    Then come the others that reach it, and those that do not, each by the objective.
    """
    judged = [_judged(one, goal, load) for one in candidates]
    reaching = [one for one in judged if not one.lost]
    failing = [one for one in judged if one.lost]

    def order(one: Choice) -> tuple[float, ...]:
        rank = float("inf") if one.point is None else goal.rank(one.candidate.figures(one.point))
        return rank, one.candidate.split.ranks, one.candidate.needs.total

    reaching.sort(key=lambda one: (cost(one.candidate.machine), order(one)))
    failing.sort(key=order)
    made = [Choice(one.candidate, one.point, _behind(one, reaching[0], goal)) for one in reaching]
    return (*made, *failing)


def cost(machine: Machine) -> tuple[bool, float]:
    """What machines are compared by: dollars an hour; those without a known price come last, by their GPUs."""
    return (False, machine.dollars) if machine.dollars is not None else (True, float(machine.gpus))


def _judged(one: Candidate, goal: Goal, load: Workload) -> Choice:
    """The point that suits the goal best, and why it misses the goal, if it does."""
    if not one.points:
        return Choice(one, None, _no_room(one, load))
    judged = [
        (goal.misses(figures), goal.rank(figures), point) for point in one.points for figures in [one.figures(point)]
    ]
    misses, _, point = min(judged, key=lambda each: (len(each[0]), each[1]))
    return Choice(one, point, "; ".join(misses))


def _no_room(one: Candidate, load: Workload) -> str:
    if one.most:
        return f"a copy has memory for {one.most} requests at once"
    needs = one.needs
    return (
        f"needs {needs.total / _GB:.1f} GB of a GPU's {one.usable / _GB:.1f} GB: weights {needs.weights / _GB:.1f}, "
        f"a request of {load.input + load.output} tokens {needs.cache / _GB:.2f}, workspace {needs.workspace / _GB:.2f}"
    )


def _behind(one: Choice, best: Choice, goal: Goal) -> str:
    """Why a candidate that reaches the goal is not the best; "" if it is."""
    if one is best or one.point is None or best.point is None:
        return ""
    mine, its = one.candidate, best.candidate
    if cost(mine.machine) != cost(its.machine):
        reaches = f"{its.machine.name} reaches the goal"
        if its.machine.dollars is None:
            return f"takes {mine.machine.gpus} GPUs, {reaches} with {its.machine.gpus}"
        if mine.machine.dollars is None:
            return f"has no known price, {reaches}"
        return f"costs ${mine.machine.dollars:.2f} an hour, {reaches} for ${its.machine.dollars or 0:.2f}"
    figure, other = (each.candidate.figures(each.point)[goal.metric.name] for each in (one, best) if each.point)
    shown = shown_figure(goal.metric, figure)
    if figure == other:
        return f"{goal.metric.name} {shown} as the best, which takes fewer GPUs or bytes"
    times = max(figure, other) / min(figure, other)
    worse = f"{times:.3g} times worse" if times >= 1.005 else "less than 1 % worse"
    share = one.point.shares[one.point.bound]
    return f"{goal.metric.name} {shown}, {worse}; {100 * share:.0f} % of its time is {one.point.bound}"
