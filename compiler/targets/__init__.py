"""Targets: what a kind of machine needs a graph to become. One folder each, one table here."""

from __future__ import annotations

from ...runtime.errors import RecipeError, nearest
from . import cpu, cuda, null
from .cuda.tuning.tactics import Table, tables_for
from .target import Emitted, Limits, Precision, Target

__all__ = ["TARGETS", "Emitted", "Limits", "Precision", "Table", "Target", "tables_for", "target_named"]

TARGETS: dict[str, Target] = {
    "cpu": Target(
        "cpu", cpu.SUMMARY, cpu.legalize, lambda graph, *_: Emitted(*cpu.emit(graph)), merge_gated=cpu.MERGE_GATED
    ),
    "null": Target("null", null.SUMMARY, null.legalize, lambda graph, *_: Emitted(*null.emit(graph))),
    **{target.name: target for target in cuda.TARGETS},
}


def target_named(name: str) -> Target:
    """The target of this name.

    Raises:
        RecipeError: there is none; names the nearest.
    """
    if name not in TARGETS:
        raise RecipeError(f"target {name!r}{nearest(name, TARGETS)}", fix=f"one of {', '.join(TARGETS)}")
    return TARGETS[name]
