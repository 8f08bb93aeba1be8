"""`llmc passes`: what the pipeline does to a checkpoint, and why a rule that did not fire came nearest."""

from __future__ import annotations

from typing import Unpack

from ...recipes.flags import BuildFlags
from ..common import console, extras, options


@options.takes(options.BUILD_FLAGS)
def passes(
    checkpoint: options.CheckpointPath,
    recipe: options.RecipeName = None,
    accept_config: options.AcceptConfig = None,
    random_weights: options.RandomWeights = None,
    json: options.Json = False,
    **flags: Unpack[BuildFlags],
) -> None:
    """List the pipeline: which passes fired how often, and the nearest miss."""
    extras.need("build", "llmc passes")
    from ...compiler.checkpoint.account import open_source
    from ...compiler.pipeline import context_of, lower
    from ...recipes.recipe import with_flags

    plan = with_flags(recipe, **flags)
    source = open_source(checkpoint, accept_config or (), random_weights)
    _, _, reports = lower(source, plan, context_of(plan, source))
    rows = [console.facts(one, "phase", "name", "fired", "nearest_miss") for one in reports]
    lines = [tuple(map(str, row.values())) for row in rows]
    console.show({"passes": rows}, console.table([("phase", "pass", "fired", "nearest miss"), *lines], indent=""), json)
