"""The rule between ranks, checked on their final graphs: a rank that comes to a collective alone waits for ever."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence

import onnx_ir as ir

from ...runtime.engine_file.split import Split
from . import ops
from .graph import Graph, attribute
from .verify import BrokenGraph

_OWN = ("peer", "shard", "start")
"""Attributes in which the shards of a stage differ."""


def verify_meeting(graphs: Sequence[Graph], split: Split) -> None:
    """Check the graphs of all ranks of a split, in their order, against each other.

    The shards of a stage have the same nodes but for attributes of `_OWN`, so they come to each collective of their
    group in one order. What a rank sends to another is what that one receives, in the same order.

    Raises:
        BrokenGraph: they do not; the message names the first ranks and node.
    """
    nodes = [list(graph.nodes) for graph in graphs]
    for rank, own in enumerate(nodes):
        first = rank - split.shard(rank)
        for one, other in zip(own, nodes[first], strict=False):
            if _alike(one) != _alike(other):
                raise BrokenGraph(f"ranks {first} and {rank} have different nodes: {other.name} and {one.name}")
        if len(own) != len(nodes[first]):
            raise BrokenGraph(f"ranks {first} and {rank} have {len(nodes[first])} and {len(own)} nodes")
    sent, received = _traffic(nodes, "Send"), _traffic(nodes, "Recv")
    for pair in sorted(sent.keys() | {(peer, rank) for rank, peer in received}):
        rank, peer = pair
        if sent[pair] != received[peer, rank]:
            raise BrokenGraph(f"rank {rank} sends {sent[pair]} to rank {peer}, which receives {received[peer, rank]}")


def _alike(node: ir.Node) -> object:
    attributes = sorted((name, str(attr)) for name, attr in node.attributes.items() if name not in _OWN)
    return node.domain, node.op_type, node.overload, [*map(_read, node.inputs)], len(node.outputs), attributes


def _read(value: ir.Value | None) -> object:
    """What a node reads, the same on all shards: of a value that is cut into a part per shard, they read their own."""
    made = None if value is None else value.producer()
    return value and value.name if made is None or made.op_type != "Split" else made.name


def _traffic(nodes: Sequence[Sequence[ir.Node]], operator: str) -> defaultdict[tuple[int, int], list[int]]:
    """The numbers of the values that a rank sends, or receives, by the rank and its peer."""
    found: defaultdict[tuple[int, int], list[int]] = defaultdict(list)
    for rank, own in enumerate(nodes):
        for node in own:
            if ops.is_collective(node) and node.op_type == operator:
                found[rank, attribute(node, "peer")].append(attribute(node, "number"))
    return found
