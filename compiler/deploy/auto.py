"""What `--parallel auto` and `--quantize auto` of a build mean, checked before anything heavy is imported."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ...recipes.flags import BuildFlags
from ...recipes.goal import Goal, parse_goal
from ...recipes.judges import has_use
from ...recipes.machines.table import Machine
from ...recipes.recipe import Recipe, with_flags
from ...runtime.chips import target_for
from ...runtime.errors import RecipeError, text_of
from .asked import FORMATS, named_machines

AUTO = "auto"
_CHOSEN = ("parallel", "quantize")
"""Flags that may be AUTO."""


@dataclass(frozen=True)
class Auto:
    """A build whose split or weight format is chosen by a plan."""

    machine: Machine
    goal: Goal
    chosen: tuple[str, ...]
    """Of `parallel` and `quantize`, those that are."""
    recipes: tuple[Recipe, ...]
    """One for each weight format that may be chosen, with all else as it was asked for."""

    @property
    def target(self) -> str:
        """The target of the machine."""
        return _target(self.machine)

    @property
    def asked(self) -> str:
        """What is chosen, as a user writes it."""
        return " and ".join(f"{name} {AUTO}" for name in self.chosen)


def auto_of(
    recipe: Any, flags: BuildFlags, machine: str | None, goal: str | None, names: tuple[str, str]
) -> Auto | None:
    """What a build leaves to a plan; None if nothing. `names` are what messages call `machine` and `goal`.

    The machine's target becomes the recipe's, unless targets were given.

    Raises:
        RecipeError: "auto" is beside others; the machine is missing, unknown, or not one; its target is not built for;
            the goal is wrong; or machine and goal are given, and nothing is left to a plan.
    """
    given: Mapping[str, Any] = {key: value for key, value in flags.items() if value is not None}
    chosen = tuple(key for key in _CHOSEN if _is_auto(key, given.get(key)))
    if not chosen:
        for name, value in zip(names, (machine, goal), strict=True):
            if value is not None:
                asked = f"cannot use {name} {value}, which would change nothing"
                raise RecipeError(asked, found="a split and a format that are given", fix="parallel auto beside it")
        return None
    if machine is None:
        raise RecipeError(f"expected {names[0]} with {chosen[0]} {AUTO}", fix=f"{names[0]} 8xh200")
    (where, *more) = named_machines([text_of(names[0], one) for one in machine.split(",")])
    if more:
        raise RecipeError(f"expected one machine as {names[0]}", found=machine, fix="llmc plan, to compare machines")
    found = Goal() if goal is None else parse_goal(text_of(names[1], goal))
    rest = {key: value for key, value in given.items() if key not in chosen}
    targets = with_flags(recipe).targets
    if "targets" not in rest and targets == Recipe().targets:
        rest["targets"] = (_target(where),)
    formats = FORMATS if "quantize" in chosen else (None,)
    recipes = tuple(_recipe(recipe, rest, format, where) for format in formats)
    if _target(where) not in recipes[0].targets:
        asked = f"cannot choose {chosen[0]} for {where.name}"
        found_targets = f"targets {', '.join(recipes[0].targets)}"
        raise RecipeError(
            asked, found=found_targets, fix=f"a build for {_target(where)}, or a machine of these targets"
        )
    return Auto(where, found, chosen, recipes)


def _recipe(recipe: Any, flags: Mapping[str, Any], format: str | None, machine: Machine) -> Recipe:
    """The recipe of a format; None: that of the recipe. What was not given is FP8 where that has a use, as in plans."""
    if format is None:
        return with_flags(recipe, **flags)
    reduced = "fp8" if machine.chip.fp8 and format != "none" else "none"
    told = flags.get("activations", reduced)
    activations = told if told == "none" or has_use(told, format) else reduced
    given: dict[str, Any] = {"kv": reduced, **flags, "activations": activations, "quantize": format}
    return with_flags(recipe, **given)


def _is_auto(key: str, value: str | Sequence[str] | None) -> bool:
    names = value.split(",") if isinstance(value, str) else value
    if not isinstance(names, list | tuple) or AUTO not in names:  # other types are for the recipe to refuse
        return False
    if len(names) > 1:
        raise RecipeError(f"expected {key} {AUTO} alone", found=", ".join(map(str, names)))
    return True


def _target(machine: Machine) -> str:
    return target_for(machine.chip.sm) or machine.chip.name
