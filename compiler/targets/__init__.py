"""Targets: how a graph is compiled for a kind of machine. One folder per target, one table here."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import replace

from ...passes.graph.graph import Graph
from ...runtime.engine_file.split import target_of
from ...runtime.errors import RecipeError, nearest
from ...runtime.plan.between import RankOf
from ...runtime.progress import Progress
from . import cpu, cuda, null
from .target import CompiledProfile, Precision, ProfileConfig, Tactics, Target

__all__ = [
    "TARGETS",
    "CompiledProfile",
    "Precision",
    "ProfileConfig",
    "Tactics",
    "compiled",
    "tactics_of",
    "target_named",
]

TARGETS: dict[str, Target] = {target.name: target for target in (cpu.TARGET, null.TARGET, *cuda.TARGETS)}


def target_named(name: str) -> Target:
    """The target of this name.

    Raises:
        RecipeError: no target has this name; names the nearest.
    """
    if name not in TARGETS:
        raise RecipeError(
            f"cannot build for target {name!r}{nearest(name, TARGETS)}", fix=f"one of {', '.join(TARGETS)}"
        )
    return TARGETS[name]


def tactics_of(targets: Collection[str], given: Iterable[Tactics]) -> dict[str, Tactics]:
    """The table of measured tiles per target: the given one, else llmc's own; targets without a table are absent.

    Raises:
        RecipeError: a given table is for another target, or two tables are for the same target.
    """
    chosen: dict[str, Tactics] = {}
    for table in given:
        if table.target not in targets:
            raise RecipeError(
                f"cannot use a table of tiles for {table.target} ({table.gpu})",
                found=f"targets {', '.join(targets)}",
                fix=f"--target {table.target}, or no such table",
            )
        if table.target in chosen:
            raise RecipeError(f"cannot use two tables of tiles for {table.target}", fix="one of them")
        chosen[table.target] = table
    for name in targets:
        if name not in chosen and (table := target_named(name).tactics()) is not None:
            chosen[name] = table
    return chosen


def compiled(
    legal: Mapping[str, Graph], config: ProfileConfig, tables: Mapping[str, Tactics], progress: Progress
) -> dict[str, CompiledProfile]:
    """What the legal graph of each profile or rank, by label, is compiled to, with its target's measured tiles."""
    found = {}
    for label, graph in legal.items():
        target = target_of(label)
        own = replace(config, tactics=tables.get(target), rank=RankOf.of(label))
        found[label] = target_named(target).emit(graph, own, progress)
    return found
