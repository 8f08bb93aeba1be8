"""`llmc passes`: what the pipeline does to a checkpoint, and why a rule that did not fire came nearest."""

from __future__ import annotations

from ..common import console, extras, options
from . import build


def passes(
    checkpoint: options.CheckpointPath,
    recipe: options.RecipeName = None,
    quantize: options.Quantize = None,
    target: options.Targets = None,
    max_context: options.MaxContext = None,
    max_batch: options.MaxBatch = None,
    accept_config: options.AcceptConfig = None,
    random_weights: options.RandomWeights = None,
    json: options.Json = False,
) -> None:
    """List the pipeline: which passes fired how often, and the nearest miss."""
    extras.need("build", "llmc passes")
    from ...compiler.build import explain

    reports = explain(
        checkpoint,
        build.chosen_recipe(recipe, quantize=quantize, targets=target, max_context=max_context, max_batch=max_batch),
        accept_config=accept_config or (),
        random_weights=random_weights,
    )
    if json:
        rows = [
            {"phase": one.phase, "name": one.name, "fired": one.fired, "nearest_miss": one.nearest_miss}
            for one in reports
        ]
        console.out_json({"passes": rows})
        return
    lines = [(one.phase, one.name, str(one.fired), one.nearest_miss) for one in reports]
    console.out(console.table([("phase", "pass", "fired", "nearest miss"), *lines], indent=""))
