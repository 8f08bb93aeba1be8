"""The rule between ranks, checked on their final graphs: a rank that comes to a collective alone waits for ever."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from itertools import zip_longest

import onnx_ir as ir

from ...runtime.engine_file.split import Split
from . import ops
from .graph import Graph, attribute
from .verify import BrokenGraph

_OWN = ("peer", "shard")
"""Attributes of collectives in which the shards of a stage differ."""


def verify_meeting(graphs: Sequence[Graph], split: Split) -> None:
    """Check the graphs of all ranks of a split, in their order, against each other.

    The shards of a stage have the same collectives in the same order. What a rank sends to another is what that one
    receives, in the same order.

    Raises:
        BrokenGraph: they do not; the message names the first ranks and the collectives that do not meet.
    """
    nodes = [[node for node in graph.nodes if ops.is_collective(node)] for graph in graphs]
    for rank, own in enumerate(nodes):
        first = rank - split.shard(rank)
        for pair in zip_longest(nodes[first], own):
            if len({*map(_alike, pair)}) > 1:
                here, there = (node.name if node is not None else "the end" for node in pair)
                raise BrokenGraph(f"rank {first} is at {here} when rank {rank} is at {there}")
    sent, received = _traffic(nodes, "Send"), _traffic(nodes, "Recv")
    for pair in sorted(sent.keys() | {(peer, rank) for rank, peer in received}):
        rank, peer = pair
        if sent[pair] != received[peer, rank]:
            raise BrokenGraph(f"rank {rank} sends {sent[pair]} to rank {peer}, which receives {received[peer, rank]}")


def _alike(node: ir.Node | None) -> object:
    if node is None:
        return None
    return node.op_type, *sorted((name, str(attr)) for name, attr in node.attributes.items() if name not in _OWN)


def _traffic(nodes: Sequence[Sequence[ir.Node]], operator: str) -> defaultdict[tuple[int, int], list[int]]:
    """The numbers of the values that a rank sends, or receives, by the rank and its peer."""
    found: defaultdict[tuple[int, int], list[int]] = defaultdict(list)
    for rank, own in enumerate(nodes):
        for node in own:
            if node.op_type == operator:
                found[rank, attribute(node, "peer")].append(attribute(node, "number"))
    return found
