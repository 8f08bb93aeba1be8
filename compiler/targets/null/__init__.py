"""The null target: compiles nothing, checks everything, so that what lies above targets is tested without one."""

from __future__ import annotations

from ....passes.graph.graph import Graph
from ....passes.graph.verify import LOGICAL
from ....passes.rewrite.manager import Phase
from ....runtime.progress import Progress
from ..target import CompiledProfile, Precision, ProfileConfig, Target


def legalize(_: Precision) -> Phase:
    """No pass: the logical graph is legal here."""
    return Phase("null", (), LOGICAL)


def emit(graph: Graph, config: ProfileConfig, progress: Progress) -> CompiledProfile:
    """The graph's text."""
    return CompiledProfile({"graph.txt": graph.text().encode()}, "graph.txt", graph.bound(), {}, 0.0)


TARGET = Target("null", "nothing: the checked logical graph as text", legalize, emit)
