"""Residual add and norm become one operator, so the residual stream is read once."""

from __future__ import annotations

from collections.abc import Sequence

import onnx_ir as ir

from .graph.graph import Builder, attribute, dims
from .rewrite.pattern import Op, Patterns, require
from .rewrite.rule import Rule


class FuseAddNorm(Rule):
    """RMSNorm(x + r), x + r = AddRMSNorm(x, r)."""

    fires = (
        "(float[2,3,4] x, float[2,3,4] r, float[4] W) => (float[2,3,4] y, float[2,3,4] z) "
        "{ s = Add(x, r) y = RMSNormalization<axis=-1, epsilon=0.00001>(s, W) z = Swish(s) }",
    )
    refuses = {
        "the add broadcasts": "(float[2,3,4] x, float[4] r, float[4] W) => (float[2,3,4] y) "
        "{ s = Add(x, r) y = RMSNormalization<axis=-1>(s, W) }",
        "want Add, found an input": "(float[2,3,4] x, float[4] W) => (float[2,3,4] y) "
        "{ y = RMSNormalization<axis=-1>(x, W) }",
        "the norm is not over the last axis": "(float[2,3,4] x, float[2,3,4] r, float[3,4] W) => (float[2,3,4] y) "
        "{ s = Add(x, r) y = RMSNormalization<axis=1>(s, W) }",
    }

    @staticmethod
    def pattern(p: Patterns) -> tuple[Op, ...]:
        total = p.Add("x", "r")
        return p.RMSNormalization(total, "weight").named("norm"), total

    def check(self, x: ir.Value, r: ir.Value, norm: ir.Node) -> None:
        require(x.shape is not None and x.shape == r.shape, "the add broadcasts")
        axis = attribute(norm, "axis", -1)
        require(axis in (-1, len(dims(x)) - 1), "the norm is not over the last axis")

    def rewrite(self, g: Builder, x: ir.Value, r: ir.Value, weight: ir.Value, norm: ir.Node) -> Sequence[ir.Value]:
        return g.llmc("AddRMSNorm", x, r, weight, outputs=2, epsilon=attribute(norm, "epsilon", 1e-5))
