"""The cpu target: an ONNX model of stock ONNX Runtime kernels that runs on any machine."""

from __future__ import annotations

from ....passes.graph.ops import COLLECTIVES
from ....passes.graph.verify import LOGICAL
from ....passes.rewrite.manager import Phase
from ....passes.simplify import Simplify
from ....runtime.cpu.onnx_scan import CPU_OPERATORS
from ..target import Precision, Target
from .emit import emit
from .legalize import RULES

__all__ = ["TARGET"]

MERGE_GATED = False
"""Splitting the merged result costs more than merging saves (docs/performance.md)."""


def legalize(_: Precision) -> Phase:
    """Replace every logical operator by allowed ONNX Runtime kernels; merge equal helper nodes."""
    return Phase("cpu", (*RULES, Simplify()), CPU_OPERATORS | COLLECTIVES, during=LOGICAL)


TARGET = Target("cpu", "ONNX Runtime on any CPU", legalize, emit, merge_gated=MERGE_GATED)
