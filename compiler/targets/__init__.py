"""Targets: what a kind of machine needs a graph to become. One folder each, one table here."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from ...passes.manager import Phase
from ...runtime.bind import Expr
from ...runtime.errors import RecipeError
from ...runtime.strict_json import nearest
from ..graph import Graph
from . import cpu, null


@dataclass(frozen=True)
class Emitted:
    """A profile's sections by file name, the weights they bind, and what a machine must have."""

    sections: Mapping[str, bytes]
    main: str
    weights: Mapping[str, Expr]
    needs: Mapping[str, Any]
    tolerance: float
    """Largest max|a-b|/max|b| of the probe's logits against the fp32 oracle of the same quantized graph."""


@dataclass(frozen=True)
class Target:
    """A kind of machine: passes that make a graph legal on it, and what is written into the engine."""

    name: str
    summary: str
    legalize: Callable[[], Phase]
    emit: Callable[[Graph], Emitted]
    merge_gated: bool = True
    """Whether gate and up become one linear (`passes/merge_linears.py`)."""


TARGETS: dict[str, Target] = {
    "cpu": Target("cpu", cpu.SUMMARY, cpu.legalize, lambda graph: Emitted(*cpu.emit(graph)), cpu.MERGE_GATED),
    "null": Target("null", null.SUMMARY, null.legalize, lambda graph: Emitted(*null.emit(graph))),
}


def target_named(name: str) -> Target:
    """The target of this name.

    Raises:
        RecipeError: there is none; names the nearest.
    """
    if name not in TARGETS:
        raise RecipeError(f"target {name!r}{nearest(name, TARGETS)}", fix=f"one of {', '.join(TARGETS)}")
    return TARGETS[name]
