"""The null target: compiles nothing and checks everything, to test the code above targets without a real one."""

from __future__ import annotations

from ....passes.graph.graph import Graph
from ....passes.graph.verify import LOGICAL
from ....passes.rewrite.manager import Phase
from ....runtime.progress import Progress
from ..target import CompiledProfile, Precision, ProfileConfig, Target


def legalize(_: Precision) -> Phase:
    """No passes: the logical graph is legal here."""
    return Phase("null", (), LOGICAL)


def emit(graph: Graph, config: ProfileConfig, progress: Progress) -> CompiledProfile:
    """Write the graph as text."""
    return CompiledProfile({"graph.txt": graph.text().encode()}, "graph.txt", graph.bound(), {}, 0.0)


TARGET = Target("null", "nothing: the checked logical graph as text", legalize, emit)
