"""The gated activation of an MLP, act(gate) * up, becomes one operator, also on the result of a merged linear."""

from __future__ import annotations

import onnx_ir as ir

from .graph.graph import Builder
from .graph.ops import ACTIVATIONS
from .rewrite.pattern import Op, Patterns, require
from .rewrite.rule import Rule

_TYPES = tuple(dict.fromkeys(op for op, _ in ACTIVATIONS.values()))


def _activation(node: ir.Node) -> str:
    """The activation's name in ACTIVATIONS, or "" if this variant is not in the table."""
    variant = {name: attr.value for name, attr in node.attributes.items() if (name, attr.value) not in _DEFAULTS}
    found = [name for name, entry in ACTIVATIONS.items() if entry == (node.op_type, variant)]
    return found[0] if found else ""


_DEFAULTS = {("alpha", 1.0), ("approximate", "none")}


class FuseMergedGated(Rule):
    """act(a) * b with [a, b] = split(x) is GatedActivation(x)."""

    fires = (
        "(float[2,3,8] x) => (float[2,3,4] y) { a, b = Split<axis=-1, num_outputs=2>(x) s = Swish(a) y = Mul(s, b) }",
        "(float[2,3,8] x) => (float[2,3,4] y) "
        '{ a, b = Split<axis=-1, num_outputs=2>(x) s = Gelu<approximate="tanh">(a) y = Mul(b, s) }',
    )
    refuses = {
        "want result 0 of Split, found result 1": "(float[2,3,8] x) => (float[2,3,4] y) "
        "{ a, b = Split<axis=-1, num_outputs=2>(x) s = Swish(b) y = Mul(s, a) }",
        "the result of Split is an output of the graph": "(float[2,3,12] x) => (float[2,3,4] y, float[2,3,4] c) "
        "{ a, b, c = Split<axis=-1, num_outputs=3>(x) s = Swish(a) y = Mul(s, b) }",
        "the split is not in two halves": "(float[2,3,12] x) => (float[2,3,4] y) "
        "{ a, b, c = Split<axis=-1, num_outputs=3>(x) s = Swish(a) y = Mul(s, b) }",
    }

    @staticmethod
    def pattern(p: Patterns) -> Op:
        split = p.Split("x", "*sizes").named("split")
        return p.Mul(p.one_of(_TYPES, split.out(0)).named("act"), split.out(1))

    def check(self, act: ir.Node, split: ir.Node) -> None:
        require(_activation(act), f"no {act.op_type} of this kind is in the table")
        halves = {str(value.shape[-1]) for value in split.outputs if value.shape is not None}
        require(len(split.outputs) == 2 and len(halves) <= 1, "the split is not in two halves")

    def rewrite(self, g: Builder, x: ir.Value, act: ir.Node) -> ir.Value:
        return g.llmc("GatedActivation", x, overload=f"merged_{_activation(act)}")


class FuseGated(Rule):
    """act(gate) * up is GatedActivation(gate, up)."""

    fires = ("(float[2,3,4] gate, float[2,3,4] up) => (float[2,3,4] y) { s = Swish(gate) y = Mul(up, s) }",)
    refuses = {
        "the product broadcasts": "(float[2,3,4] gate, float[4] up) => (float[2,3,4] y) "
        "{ s = Swish(gate) y = Mul(s, up) }",
        "no Swish of this kind is in the table": "(float[2,3,4] gate, float[2,3,4] up) => (float[2,3,4] y) "
        "{ s = Swish<alpha=1.7>(gate) y = Mul(s, up) }",
        "the result of Swish is an output of the graph": "(float[2,3,4] g, float[2,3,4] up) => "
        "(float[2,3,4] y, float[2,3,4] s) { s = Swish(g) y = Mul(s, up) }",
        "the result of Swish is read outside the pattern": "(float[2,3,4] g, float[2,3,4] up) => "
        "(float[2,3,4] y, float[2,3,4] z) { s = Swish(g) y = Mul(s, up) z = Relu(s) }",
    }

    @staticmethod
    def pattern(p: Patterns) -> Op:
        return p.Mul(p.one_of(_TYPES, "gate").named("act"), "up")

    def check(self, gate: ir.Value, up: ir.Value, act: ir.Node) -> None:
        require(_activation(act), f"no {act.op_type} of this kind is in the table")
        require(gate.shape is not None and gate.shape == up.shape, "the product broadcasts")

    def rewrite(self, g: Builder, gate: ir.Value, up: ir.Value, act: ir.Node) -> ir.Value:
        return g.llmc("GatedActivation", gate, up, overload=f"pair_{_activation(act)}")
