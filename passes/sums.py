"""Finds where the summands of shards are added up: once for a mixture's experts and the shared expert beside them.

The shards of a stage each have a summand of what a linear cut by columns computes, and of what experts compute. Mostly
an AllReduce follows at once. Experts and a shared expert are added first, so that one AllReduce is enough.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import onnx_ir as ir

from .graph import ops
from .graph.graph import BLOCK, MODULE
from .placement import COLUMNS, Cut, Placement


@dataclass(frozen=True)
class Sums:
    """The nodes of a graph that give a sum over shards."""

    placement: Placement
    totals: frozenset[ir.Node] = frozenset()
    """Additions of summands, whose results are then added up over all shards."""
    summands: frozenset[ir.Node] = frozenset()
    """Nodes before them, whose results stay summands."""

    @staticmethod
    def of(nodes: Iterable[ir.Node], placement: Placement) -> Sums:
        """Those of a graph."""
        alone = Sums(placement)
        if not placement.mixtures or placement.split.shards == 1:
            return alone
        totals, summands = set[ir.Node](), set[ir.Node]()
        for node in nodes:
            terms = [alone._chain(value) for value in node.inputs] if node.op_type == "Add" else []
            before = [one for term in terms for one in term]
            if len(terms) == 2 and all(terms) and any(one.op_type == "MoE" for one in before):
                totals.add(node)
                summands |= {*before}
        return Sums(placement, frozenset(totals), frozenset(summands))

    def adds_up(self, node: ir.Node) -> bool:
        """Whether an AllReduce follows a node, and nothing between them."""
        return node in self.totals or (node not in self.summands and self._begins(node))

    def _begins(self, node: ir.Node) -> bool:
        """Whether the shards have summands of its result; a linear's bias is added to the sum."""
        if self.placement.split.shards == 1:
            return False
        if node.op_type == "MoE":
            return True
        cut = cut_of(node, self.placement) if node.op_type == "Linear" else None
        return cut is not None and cut.axis == COLUMNS and not ops.has_bias(node)

    def _chain(self, value: ir.Value | None) -> tuple[ir.Node, ...]:
        """The nodes that give a value of which each shard has a summand, read by one node alone; () of others."""
        node = value.producer() if value is not None else None
        if value is None or node is None or len(value.uses()) > 1 or value.is_graph_output():
            return ()
        if self._begins(node):
            return (node,)
        factors = [self._chain(one) for one in node.inputs] if node.op_type == "Mul" else []
        summed = [one for one in factors if one]
        return (node, *summed[0]) if len(summed) == 1 else ()


def cut_of(linear: ir.Node, placement: Placement) -> Cut | None:
    """How the weight of a linear is cut; None if all shards have all of it."""
    return placement.cut_of(linear.metadata_props[BLOCK], linear.metadata_props.get(MODULE, ""))
