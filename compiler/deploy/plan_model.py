"""Plans a model for what was asked, and reports all of it: the one function of `llmc plan` and `llmc.plan`."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cache

from ...recipes.machines.table import Machine
from ...recipes.recipe import MAX_CONTEXT, Recipe
from ...runtime.costs.facts import load_facts
from ...runtime.dtypes import FP4_FORMATS
from ...runtime.errors import RecipeError
from ...runtime.plan.plan import BLOCK_TOKENS
from ..families.config import Config
from ..planner.choose import Choice, chosen
from ..planner.planner import Planned, plan, priced_target
from ..planner.serve import Workload
from .asked import TOKENS, Asked, recipe_of
from .build_cost import build_cost
from .frontier import Place, frontier, places
from .models import Model
from .remedies import first_fitting, larger, nearest, smaller
from .report import (
    BuildFigures,
    CandidateReport,
    LoadReport,
    ModelReport,
    PlanReport,
    WouldFit,
    candidate_report,
    frontier_report,
    refused_report,
)

SMALL = 8
"""GPUs of a machine that is priced at once when no machine was named."""


@dataclass(frozen=True)
class Plan:
    """A plan as records, and the places of its picture."""

    report: PlanReport
    places: tuple[Place, ...]
    """Candidates of the machine of the frontier, with all their numbers of requests."""
    frontier: tuple[Place, ...]


def plan_model(model: Model, asked: Asked) -> Plan:
    """Price every split and format of a model on the machines that were asked for.

    Raises:
        RecipeError: the model has fewer positions than the requests or the context.
    """
    load = _load(asked, model.subject.config)
    context = _context(asked, load, model.subject.config)
    first, later = _rounds(asked)
    planned = _planned(model, first, load, context)
    later = replace(later, machines=tuple(one for one in later.machines if _may_be_cheaper(one, planned)))
    if later.machines:
        planned = _together(planned, _planned(model, later, load, context))
    best, near = planned.best, nearest(planned)
    shown = best or near
    found = () if shown is None else tuple(places((one.candidate for one in planned.choices), shown.candidate.machine))
    line = frontier(found)
    fits_nowhere = not any(one.candidate.most for one in planned.choices)

    said: list[str] = []
    facts = load_facts(say=said.append)

    @cache
    def cost(recipe: Recipe) -> BuildFigures:
        return build_cost(model.checkpoint, recipe, context, facts)

    def reported(one: Choice) -> CandidateReport:
        # a build makes the same bytes for all splits and GPUs, but for its sections
        return candidate_report(one, cost(replace(one.candidate.recipe, parallel=("tp1",), max_batch=1)))

    report = PlanReport(
        model=_model_report(model),
        goal=str(asked.goal),
        load=LoadReport(load.input, load.output, context, asked.batch),
        best=None if best is None else reported(best),
        nearest=None if near is None else reported(near),
        would_fit=tuple(_would_fit(model, asked, load, context)) if fits_nowhere else (),
        candidates=tuple(map(reported, planned.choices)),
        refused=tuple(map(refused_report, planned.refused)),
        frontier=frontier_report(line),
        not_priced=_not_priced(asked, planned),
        notes=(*model.notes, *said),
    )
    return Plan(report, found, line)


def recipes_of(asked: Asked, context: int) -> tuple[Recipe, ...]:
    """The recipes to price: every format that was asked for, once for chips with FP8 and once for those without.

    If no activations were asked for, 4-bit ones are tried too on chips that multiply them.
    """
    kinds = {(bool(one.chip.fp8), bool(one.chip.fp4)): one for one in asked.machines}.values()
    found = [_recipe(machine, one, asked, context) for machine in kinds for one in asked.formats]
    for machine in kinds:
        for one in asked.formats if asked.activations is None and machine.chip.fp4 else ():
            if one in FP4_FORMATS:
                found.append(_recipe(machine, one, replace(asked, activations=one), context))
    return tuple(dict.fromkeys(found))


def _recipe(machine: Machine, format: str, asked: Asked, context: int) -> Recipe:
    made = recipe_of(format, priced_target(machine, None), machine.chip, asked, context)
    return replace(made, targets=(priced_target(machine, made.activations),))


def _load(asked: Asked, config: Config) -> Workload:
    """The requests; what was not asked for is TOKENS, or half of the model's positions if these are fewer."""
    default = min(TOKENS, config.decoder.positions // 2)
    load = Workload(asked.input or default, asked.output or default)
    total = load.input + load.output
    config.require_positions(total, f"cannot plan requests of {total} tokens", "--input and --output, together")
    return load


def _context(asked: Asked, load: Workload, config: Config) -> int:
    """Positions of an engine: what was asked for, or whole blocks that hold a request."""
    total, positions = load.input + load.output, config.decoder.positions
    if asked.context is None:
        whole = -(-total // BLOCK_TOKENS) * BLOCK_TOKENS
        return min(whole, MAX_CONTEXT) if config.rope_is_dynamic else min(whole, positions)
    config.require_positions(asked.context, f"cannot plan with a context of {asked.context}", "--context")
    if asked.context < total:
        found = f"prompts of {load.input} tokens and answers of {load.output}"
        raise RecipeError(f"cannot plan with a context of {asked.context}", found=found, fix=f"--context {total}")
    return asked.context


def _planned(model: Model, asked: Asked, load: Workload, context: int) -> Planned:
    recipes = recipes_of(asked, context)
    return plan(model.subject, asked.machines, recipes, load, asked.goal, batch=asked.batch)


def _rounds(asked: Asked) -> tuple[Asked, Asked]:
    """What to price at once, and what only if it may be cheaper: of all machines, those of more than SMALL GPUs have
    most of the splits."""
    now = [one for one in asked.machines if asked.are_named or one.gpus <= SMALL]
    later = [one for one in asked.machines if one not in now]
    return replace(asked, machines=tuple(now)), replace(asked, machines=tuple(later))


def _may_be_cheaper(machine: Machine, planned: Planned) -> bool:
    best = planned.best
    if best is None:
        return True
    cost = best.candidate.machine.dollars
    return cost is not None and machine.dollars is not None and machine.dollars < cost


def _together(one: Planned, other: Planned) -> Planned:
    candidates = [choice.candidate for choice in (*one.choices, *other.choices)]
    refused = tuple(dict.fromkeys((*one.refused, *other.refused)))
    return Planned(one.goal, one.load, chosen(candidates, one.goal, one.load), refused)


def _not_priced(asked: Asked, planned: Planned) -> tuple[str, ...]:
    priced = {one.candidate.machine.name for one in planned.choices}
    return () if asked.are_named else tuple(one.name for one in asked.machines if one.name not in priced)


def _would_fit(model: Model, asked: Asked, load: Workload, context: int) -> Iterator[WouldFit]:
    """Where the model would fit: in the fewest more GPUs of each chip, and in other formats on the same machines."""
    for same_chip in larger(asked):
        for machine in same_chip:  # ascending: most of the work is in the large ones
            if found := _fitting(model, replace(asked, machines=(machine,)), load, context):
                yield found
                break
    if (other := smaller(asked)).formats and (found := _fitting(model, other, load, context)):
        yield found


def _fitting(model: Model, asked: Asked, load: Workload, context: int) -> WouldFit | None:
    made = _planned(model, asked, load, context)
    one = first_fitting([choice.candidate for choice in made.choices])
    return None if one is None else WouldFit(one.machine.name, one.profile, one.recipe.default_format)


def _model_report(model: Model) -> ModelReport:
    config = model.subject.config
    layers = len(config.decoder.layers)
    architecture = config.family.architecture
    return ModelReport(model.where, architecture, model.parameters, layers, model.subject.stored, model.has_weights)
