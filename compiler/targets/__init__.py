"""Targets: what a kind of machine needs a graph to become. One folder each, one table here."""

from __future__ import annotations

from collections.abc import Collection, Iterable

from ...runtime.errors import RecipeError, nearest
from . import cpu, cuda, null
from .target import CompiledProfile, Precision, ProfileConfig, Tactics, Target

__all__ = ["TARGETS", "CompiledProfile", "Precision", "ProfileConfig", "Tactics", "tactics_of", "target_named"]

TARGETS: dict[str, Target] = {target.name: target for target in (cpu.TARGET, null.TARGET, *cuda.TARGETS)}


def target_named(name: str) -> Target:
    """The target of this name.

    Raises:
        RecipeError: there is none; names the nearest.
    """
    if name not in TARGETS:
        raise RecipeError(f"target {name!r}{nearest(name, TARGETS)}", fix=f"one of {', '.join(TARGETS)}")
    return TARGETS[name]


def tactics_of(targets: Collection[str], given: Iterable[Tactics]) -> dict[str, Tactics]:
    """The measured tiles of each target that has some: the given, else what comes with llmc.

    Raises:
        RecipeError: a given table is for no target, or two are for one.
    """
    chosen: dict[str, Tactics] = {}
    for table in given:
        if table.target not in targets:
            raise RecipeError(
                f"a table of tiles for {table.target} ({table.gpu})",
                found=f"targets {', '.join(targets)}",
                fix=f"--target {table.target}, or no such table",
            )
        if table.target in chosen:
            raise RecipeError(f"two tables of tiles for {table.target}", fix="one of them")
        chosen[table.target] = table
    for name in targets:
        if name not in chosen and (table := target_named(name).tactics()) is not None:
            chosen[name] = table
    return chosen
