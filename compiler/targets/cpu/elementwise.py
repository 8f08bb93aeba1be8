"""Activations as ONNX Runtime's CPU kernels: SiLU is QuickGelu with slope 1, the others are operators of ONNX."""

from __future__ import annotations

import onnx_ir as ir

from ....passes.graph.graph import Builder
from ....passes.graph.pointwise import ACTIVATIONS


def activated(g: Builder, activation: str, x: ir.Value) -> ir.Value:
    """The activation of this name in `pointwise.ACTIVATIONS`, of x's shape."""
    if activation == "silu":
        y = g.ms("QuickGelu", x, alpha=1.0)
        y.type, y.shape = x.type, x.shape
        return y
    op, attributes = ACTIVATIONS[activation]
    return g(op, x, **attributes)
