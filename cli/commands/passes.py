"""`llmc passes`: what the pipeline does to a checkpoint, and why a rule that did not fire came nearest."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Unpack

from ...recipes.flags import BuildFlags
from ...runtime.errors import RecipeError
from ..common import console, extras, options
from ..common.options import flag

From = Annotated[
    Path | None, flag("--from", "A graph that --dump saved, instead of CHECKPOINT.", default="none", metavar="FILE")
]


@options.takes(options.BUILD_FLAGS)
def passes(
    checkpoint: Annotated[str | None, options.CHECKPOINT] = None,
    saved: From = None,
    recipe: options.RecipeName = None,
    accept_config: options.AcceptConfig = None,
    random_weights: options.RandomWeights = None,
    dump: options.Dump = None,
    json: options.Json = False,
    **flags: Unpack[BuildFlags],
) -> None:
    """List the pipeline: which passes fired how often, and the nearest miss."""
    if (checkpoint is None) == (saved is None):
        raise RecipeError("expected a CHECKPOINT or --from FILE", found="both" if checkpoint else "neither")
    given = (recipe, accept_config, random_weights, *flags.values())
    if saved is not None and any(value is not None for value in given):
        raise RecipeError("expected no flags of a build beside --from", fix="none: the file holds its recipe")
    extras.need("build", "llmc passes")
    from ...compiler.checkpoint.account import open_source
    from ...compiler.pipeline import context_of, idle_settings, lower, resume, start_dump
    from ...recipes.recipe import with_flags

    if saved is not None:
        place, _, reports = resume(saved, dump)
        console.note(f"{saved}: saved by llmc {place.llmc}, {place.profile or 'all profiles'}, phase {place.phase}")
    else:
        plan = with_flags(recipe, **flags)
        source = open_source(checkpoint or "", accept_config or (), random_weights)
        if flags.get("max_batch") is not None:
            console.note("llmc: --max-batch changes nothing: no pass depends on it")
        for said in idle_settings(plan, source):
            console.warn(said)
        _, _, reports = lower(source, plan, context_of(plan, source), start_dump(dump, plan))
    rows = [console.facts(one, "profile", "phase", "name", "fired", "nearest_miss") for one in reports]
    lines = [tuple(map(str, row.values())) for row in rows]
    head = ("profile", "phase", "pass", "fired", "nearest miss")
    console.show({"passes": rows}, console.table([head, *lines], indent=""), json)
