"""What a user asks of a plan, checked before anything heavy is imported, and the recipes that are tried for it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from ...recipes.goal import Goal, parse_goal
from ...recipes.judges import has_use, wrong_number
from ...recipes.machines.table import Machine, machine_named, machines
from ...recipes.recipe import MAX_BATCH, MAX_CONTEXT, Recipe, with_flags
from ...runtime.chips import Chip, target_for
from ...runtime.cuda.names import CPU, NATIVE
from ...runtime.dtypes import WEIGHT_FORMATS
from ...runtime.errors import RecipeError, demand, several, text_of

FORMATS = ("none", *WEIGHT_FORMATS)
TOKENS = 1024
"""Of a prompt, and of its answer: the load that engines are most often compared by."""
MOST_REQUESTS = 1024
"""Requests at once of a copy, unless a plan is asked for a number."""


@dataclass(frozen=True)
class Asked:
    """A load, a goal, and what to choose from; see `asked_of`."""

    machines: tuple[Machine, ...]
    """Those that were named; else all of the table."""
    are_named: bool
    goal: Goal
    input: int | None
    output: int | None
    context: int | None
    batch: int | None
    formats: tuple[str, ...]
    activations: str | None
    kv: str | None

    @property
    def max_batch(self) -> int:
        """Most requests at once of a copy."""
        return min(self.batch or MOST_REQUESTS, MAX_BATCH)


def asked_of(
    machines: str | Sequence[str] | None = None,
    goal: str | None = None,
    *,
    input: int | None = None,
    output: int | None = None,
    context: int | None = None,
    batch: int | None = None,
    quantize: str | Sequence[str] | None = None,
    activations: str | None = None,
    kv: str | None = None,
) -> Asked:
    """Read what was asked for. In one text, machines and formats have commas between them; None leaves a choice.

    Raises:
        RecipeError: a machine, format or goal is unknown, or a number is out of range.
        ResourceError: "native" among the machines, without a GPU here.
    """
    places = named_machines(None if machines is None else _names("machines", machines))
    most = MAX_BATCH * max(machine.gpus for machine in places)  # as many copies
    numbers = {"input": input, "output": output, "context": context, "batch": batch}
    for name, value in numbers.items():
        if value is not None:
            demand(name, value, "a whole number", int)
            if wrong := wrong_number(name, value, most if name == "batch" else MAX_CONTEXT):
                raise RecipeError(wrong.asked, found=wrong.found)
    formats = FORMATS if quantize is None else _names("quantize", quantize)
    asked = Asked(
        places,
        machines is not None,
        Goal() if goal is None else parse_goal(text_of("goal", goal)),
        input,
        output,
        context,
        batch,
        formats,
        activations,
        kv,
    )
    for machine in asked.machines[:1]:
        for one in asked.formats:
            recipe_of(one, target_for(machine.chip.sm) or "cpu", machine.chip, asked, context)  # refuses wrong values
    return asked


def named_machines(names: Sequence[str] | None) -> tuple[Machine, ...]:
    """The machines of these names, each once; without names, all of the table.

    Raises:
        RecipeError: there is no such machine, or no price of it.
    """
    if names is None:
        return machines()
    for name in names:
        if name.strip().lower() in (CPU, NATIVE):
            fix = "a machine with GPUs, such as 8xh200; llmc bench ENGINE measures this one"
            raise RecipeError(f"cannot plan for {name}", found="plans have prices of GPUs only", fix=fix)
    return tuple(dict.fromkeys(map(machine_named, names)))


def _names(key: str, names: str | Sequence[str]) -> tuple[str, ...]:
    parts = names.split(",") if isinstance(names, str) else names
    found = tuple(dict.fromkeys(one.strip() for one in several(key, parts, text_of)))
    if not found:
        raise RecipeError(f"expected {key} as a list of at least one", found="none")
    return found


def recipe_of(format: str, target: str, chip: Chip, asked: Asked, context: int | None) -> Recipe:
    """The recipe of one weight format for one target. What was not asked for is FP8 if the chip multiplies FP8 and
    weights are quantized: the activations of large steps, and the KV cache.

    Raises:
        RecipeError: there is no such format, or activations are asked for that have no use beside it.
    """
    reduced = "fp8" if chip.fp8 and format != "none" else "none"
    # of all formats, activations that are asked for are for those where they have a use
    is_told = asked.activations == "none" or has_use(asked.activations or "", format) or asked.formats == (format,)
    return with_flags(
        None,
        quantize=format,
        activations=reduced if asked.activations is None or not is_told else asked.activations,
        kv=reduced if asked.kv is None else asked.kv,
        targets=(target,),
        max_context=context,
        max_batch=asked.max_batch,
    )
