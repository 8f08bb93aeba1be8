"""Common subexpressions and dead code: equal nodes become one node, so that later patterns see one value."""

from __future__ import annotations

import onnx_ir as ir

from .graph.graph import Graph
from .graph.ops import DOMAIN
from .rewrite.rule import Outcome, Pass, replace_value


class Simplify(Pass):
    """Equal nodes compute equal values: keeps the first. Two received values are never equal."""

    fires = (
        "(float[2,4] x) => (float[2,4] y) { a = Swish(x) b = Swish(x) y = Add(a, b) }",
        "(float[2,4] x) => (float[2,4] y) { unused = Relu(x) y = Swish(x) }",
    )
    refuses = {"": "(float[2,4] x) => (float[2,4] y) { a = Swish(x) b = Relu(x) y = Add(a, b) }"}

    def run(self, graph: Graph) -> Outcome:
        outcome = Outcome()
        seen: dict[object, ir.Node] = {}
        for node in list(graph.nodes):
            first = node if (node.domain, node.op_type) == (DOMAIN, "Recv") else seen.setdefault(_key(node), node)
            if first is node or any(value.is_graph_output() for value in node.outputs):
                continue
            for before, after in zip(node.outputs, first.outputs, strict=True):
                replace_value(before, after)
            outcome.fired += 1
        outcome.fired = max(outcome.fired, graph.remove_dead())
        return outcome


def _key(node: ir.Node) -> object:
    attributes = tuple(sorted((name, str(attr)) for name, attr in node.attributes.items()))
    return node.domain, node.op_type, node.overload, tuple(map(id, node.inputs)), attributes
