"""The null target: compiles nothing, checks everything, so that what lies above targets is tested without one."""

from __future__ import annotations

from ....passes.graph.graph import Graph
from ....passes.graph.verify import LOGICAL
from ....passes.rewrite.manager import Phase
from ....runtime.engine_file.bind import Expr
from ..target import Precision

SUMMARY = "nothing: the checked logical graph as text"


def legalize(_: Precision) -> Phase:
    """No pass: the logical graph is legal here."""
    return Phase("null", (), LOGICAL)


def emit(graph: Graph) -> tuple[dict[str, bytes], str, dict[str, Expr], dict[str, int], float]:
    """The graph's text."""
    return {"graph.txt": graph.text().encode()}, "graph.txt", graph.bound(), {}, 0.0
