"""Linears that read one input become one linear (q, k, v; gate, up), so the input is read, and quantized, once."""

from __future__ import annotations

from dataclasses import dataclass

import onnx_ir as ir

from ..runtime.engine_file.bind import Concat, as_f32, stored
from .graph import ops
from .graph.graph import GATED, KEPT, MODULE, ROLE, Graph, Quantized, block_of, width
from .rewrite.pattern import Depth, Miss
from .rewrite.rule import Outcome, Pass, replace_value


@dataclass(frozen=True)
class MergeLinears(Pass):
    """[x W1ᵀ, x W2ᵀ] = split(x [W1; W2]ᵀ): one read of x, one kernel."""

    gated: bool = True
    """True if gate and up are merged: faster if a kernel reads both from one result, slower if they must be split."""

    fires = (
        "(float[2,3,4] x, float[8,4] Q, float[4,4] K) => (float[2,3,8] q, float[2,3,4] k) "
        "{ q = llmc.Linear:f32(x, Q) k = llmc.Linear:f32(x, K) }",
        "(float[2,3,4] x, float[8,4] Q, float[8] Qb, float[4,4] K, float[4] Kb) => (float[2,3,8] q, float[2,3,4] k) "
        "{ q = llmc.Linear:f32_bias(x, Q, Qb) k = llmc.Linear:f32_bias(x, K, Kb) }",
    )
    refuses = {
        "the linears have different formats or only some have a bias": (
            "(float[2,3,4] x, float[8,4] Q, float[4,4] K, float[4] Kb) => (float[2,3,8] q, float[2,3,4] k) "
            "{ q = llmc.Linear:f32(x, Q) k = llmc.Linear:f32_bias(x, K, Kb) }"
        ),
        "only one linear reads this input": (
            "(float[2,3,4] x, float[8,4] Q) => (float[2,3,8] q) { q = llmc.Linear:f32(x, Q) }"
        ),
    }

    def run(self, graph: Graph) -> Outcome:
        outcome = Outcome()
        for nodes in _by_input(graph).values():
            if not self.gated and any(node.metadata_props.get(ROLE) == GATED for node in nodes):
                outcome.note(Miss("the target keeps gate and up apart", Depth.CHECKED), nodes[0])
            elif len(nodes) == 1:
                outcome.note(Miss("only one linear reads this input", Depth.OPERATOR), nodes[0])
            elif len({node.overload for node in nodes}) > 1:
                outcome.note(
                    Miss("the linears have different formats or only some have a bias", Depth.WEIGHTS), nodes[0]
                )
            elif reason := _unmergeable(graph, nodes):
                outcome.note(Miss(reason, Depth.WEIGHTS), nodes[0])
            else:
                _merge(graph, nodes)
                outcome.fired += 1
        if outcome.fired:
            graph.remove_dead()
        return outcome


def _by_input(graph: Graph) -> dict[tuple[ir.Value | None, str], list[ir.Node]]:
    """Linears of one input and one module: attention and MLP may read the same, but not each other's results."""
    groups: dict[tuple[ir.Value | None, str], list[ir.Node]] = {}
    for node in graph.nodes:
        if (node.domain, node.op_type) == (ops.DOMAIN, "Linear") and node.metadata_props.get(ROLE) != KEPT:
            parent = node.metadata_props.get(MODULE, "").rpartition(".")[0]
            groups.setdefault((node.inputs[0], parent), []).append(node)
    return groups


def _unmergeable(graph: Graph, nodes: list[ir.Node]) -> str:
    """Why these linears cannot be one, or "". A scalar, a global scale, must be the same for all of them."""
    for column in zip(*(node.inputs[1:] for node in nodes), strict=True):
        exprs = [graph.expr(value) for value in column]
        if any(expr is None for expr in exprs):
            return "a weight has no expression"
        if exprs[0] is not None and not exprs[0].shape:
            shared = {_shares(graph, value) for value in column}
            if len(shared) > 1:
                return "the global scales are not shared"
    return ""


def _shares(graph: Graph, value: ir.Value | None) -> object:
    expr = graph.expr(value)
    leaf = next(iter(stored(expr))) if expr is not None else None
    origin = graph.canonical[leaf.name].origin if leaf is not None else None
    return origin.shares if isinstance(origin, Quantized) else leaf


def _merge(graph: Graph, nodes: list[ir.Node]) -> None:
    first = nodes[0]
    b = graph.build(block_of(nodes), before=first)
    merged = []
    for column in zip(*(node.inputs[1:] for node in nodes), strict=True):
        exprs = [expr for value in column if (expr := graph.expr(value)) is not None]
        names = [str(value.name) for value in column if value is not None]
        if len({expr.dtype for expr in exprs}) > 1:
            exprs = [as_f32(expr) for expr in exprs]
        if exprs[0].shape:
            merged.append(graph.weight("+".join(names), Concat(tuple(exprs), 0)))
        else:
            merged.append(column[0])
    joined = b.llmc("Linear", first.inputs[0], *merged, overload=first.overload)
    sizes = [width(node.outputs[0]) for node in nodes]
    parts = b("Split", joined, b.ints(*sizes), outputs=len(nodes), axis=-1)
    for node, part in zip(nodes, parts, strict=True):
        replace_value(node.outputs[0], part)
