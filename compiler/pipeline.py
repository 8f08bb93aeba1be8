"""From a checkpoint to the legal graph of every profile: builds the logical graph, then runs all passes."""

from __future__ import annotations

from fnmatch import fnmatchcase
from pathlib import Path

from ..passes import PassReport, model_passes, profile_passes, run_phase
from ..passes.graph.graph import MODULE, Graph
from ..recipes.recipe import Recipe
from ..runtime.errors import RecipeError, nearest
from .checkpoint.checkpoint import Checkpoint
from .decoder.decoder import Decoder, build
from .targets import Precision, target_named

DEFAULT_CONTEXT = 4096


def context_of(recipe: Recipe, checkpoint: Checkpoint) -> int:
    """Positions of the engine: at most as many as the model was trained for, unless its rope type is dynamic.

    Raises:
        RecipeError: the recipe asks for more positions.
    """
    limit, asked = checkpoint.config.decoder.positions, recipe.max_context
    if asked is None:
        return min(limit, DEFAULT_CONTEXT)
    if asked > limit and not checkpoint.config.rope_is_dynamic:
        raise RecipeError(
            f"cannot build with max_context {asked}",
            found=f"a model of {limit} positions",
            fix=f"--max-context {limit} or less",
        )
    return asked


def lower(
    checkpoint: Checkpoint, recipe: Recipe, context: int, dump: Path | None = None
) -> tuple[Decoder, dict[str, Graph], tuple[PassReport, ...]]:
    """The logical graph after the model passes, the legal graph of every profile, and the reports of all passes.

    Reads no weight. `context` is the number of positions (`context_of`). `dump` is a folder for the graph after each
    pass that changed it.

    Raises:
        CheckpointError: the tensors do not match the configuration.
        RecipeError: a rule of the recipe matches no linear.
        Unsupported: a format, rope type or target of the recipe does not support this model.
    """
    decoder = build(checkpoint, context)
    graph = decoder.graph
    _require_matches(recipe, graph)
    reports = run_phase(model_passes(recipe.format_of), graph, dump)
    legal = {name: graph.copy() for name in recipe.targets}
    for name, profile in legal.items():
        target = target_named(name)
        phases = (
            profile_passes(merge_gated=target.merge_gated),
            target.legalize(Precision(recipe.activations, recipe.kv)),
        )
        for phase in phases:
            reports += run_phase(phase, profile, dump, len(reports))
    return decoder, legal, reports


def _require_matches(recipe: Recipe, graph: Graph) -> None:
    """Refuse a rule that matches no linear: it is a mistake of its author."""
    linears = [node.metadata_props.get(MODULE, "") for node in graph.nodes if node.op_type == "Linear"]
    for rule in recipe.rules:
        if not any(fnmatchcase(name, rule.match) for name in linears):
            raise RecipeError(
                f"cannot apply recipe rule {rule.match!r}{nearest(rule.match, linears)}",
                found=f"none of the {len(linears)} linears has such a name",
                fix=f"a glob on names such as {linears[0]!r}",
            )
