"""Chooses the split and the weight format of a build by a plan; the recipe that comes of it names both."""

from __future__ import annotations

from dataclasses import replace

from ...recipes.goal import shown_figure
from ...recipes.recipe import Recipe
from ...runtime.errors import VerifyError
from ..checkpoint.checkpoint import Checkpoint
from ..pipeline import context_of
from ..planner.choose import Choice, chosen
from ..planner.planner import Planned, plan, priced_target
from ..planner.serve import Workload
from .auto import Auto
from .models import subject_of
from .remedies import nearest


def decide(auto: Auto, checkpoint: Checkpoint) -> tuple[Recipe, str]:
    """The recipe of a build that a plan has chosen, and why, for the user.

    The recipe leaves nothing to choose: given as flags, it makes the same engine.

    Requests fill the engine's context, half prompt and half answer; a copy has as many at once as its largest batch.

    Raises:
        VerifyError: no split and format reaches the goal on the machine; says which comes nearest.
        RecipeError: the context is longer than the model's.
    """
    context = context_of(auto.recipes[0], checkpoint)
    load = Workload(max(1, context // 2), max(1, context - context // 2))
    targets = [(priced_target(auto.machine, one.activations),) for one in auto.recipes]
    priced = [
        replace(one, targets=target, parallel=("tp1",), max_context=context)
        for one, target in zip(auto.recipes, targets, strict=True)
    ]
    planned = plan(subject_of(checkpoint), (auto.machine,), priced, load, auto.goal)
    if "parallel" not in auto.chosen:
        splits = auto.recipes[0].splits
        candidates = [one.candidate for one in planned.choices if one.candidate.split in splits]
        planned = Planned(auto.goal, load, chosen(candidates, auto.goal, load), planned.refused)
    best = planned.best
    if best is None:
        raise VerifyError(
            f"cannot reach the goal {auto.goal} on {auto.machine.name}",
            found=_why_not(planned),
            fix=f"llmc plan --for {auto.machine.name}, which shows all splits and formats",
        )
    recipe = next(one for one in auto.recipes if one.default_format == best.candidate.recipe.default_format)
    if "parallel" in auto.chosen:
        recipe = replace(recipe, parallel=(best.candidate.split.name,))
    recipe = replace(recipe, max_batch=best.candidate.recipe.max_batch)  # smaller, if the recipe's leaves no memory
    return recipe, _said(auto, best, planned)


def _why_not(planned: Planned) -> str:
    near = nearest(planned) or next(iter(planned.choices), None)
    if near is None:
        return "; ".join(dict.fromkeys(one.reason for one in planned.refused))
    return f"{near.candidate.profile}, weights {near.candidate.recipe.default_format}, comes nearest: {near.lost}"


def _said(auto: Auto, best: Choice, planned: Planned) -> str:
    one, point = best.candidate, best.point
    copies = f", {one.copies} copies of it" if one.copies > 1 else ""
    text = f"{auto.asked} on {auto.machine.name}: {one.profile}, weights {one.recipe.default_format}{copies}"
    if point is not None:
        figure = shown_figure(auto.goal.metric, one.figures(point)[auto.goal.metric.name])
        text += f"; {auto.goal.metric.name} {figure} at {one.requests(point)} requests, bound by {point.bound}"
    other = next((each for each in planned.choices if each is not best), None)
    return text if other is None else f"{text}\n  next {other.candidate.profile}: {other.lost}"
