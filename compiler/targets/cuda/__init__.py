"""NVIDIA GPUs: Triton kernels compiled ahead of time, and a launch plan. Nothing here needs a GPU."""

from __future__ import annotations

from ....passes.manager import Phase
from ....runtime.progress import Progress
from ...graph import Graph
from ..target import Emitted, Limits, Target
from .legalize import LEGAL, PASSES

__all__ = ["TARGETS"]

_SM = (80, 89, 90, 100, 120)


def _legalize() -> Phase:
    """Rope, cache and attention become one operator, which the plan's launches compute."""
    return Phase("cuda", PASSES, LEGAL)


def _target(sm: int) -> Target:
    def emit(graph: Graph, limits: Limits, progress: Progress) -> Emitted:
        from .compile import need_compiler

        need_compiler()
        from .emit import emit  # brings Triton in, which other targets do without

        return emit(graph, limits, sm, progress)

    return Target(f"sm_{sm}", f"NVIDIA GPUs of compute capability {sm / 10:g}", _legalize, emit, compiles=True)


TARGETS = tuple(map(_target, _SM))
