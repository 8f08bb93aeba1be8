"""Joins the graphs of all ranks into one graph for the oracle: a collective becomes one operator over all its ranks."""

from __future__ import annotations

from collections import defaultdict, deque
from collections.abc import Iterator, Mapping, Sequence

import numpy as np
import onnx_ir as ir

from ...passes.graph import collectives, ops
from ...passes.graph.graph import BLOCK, MODULE, ROLE, Graph, attribute
from ...passes.graph.ops import is_collective
from ...passes.placement import Placement
from ...runtime.engine_file.split import Split
from ..decoder.placement import kv_heads
from ..families.spec import DecoderSpec, cache_of

_OF_EACH_RANK = ("past.", "present.")
"""Inputs and outputs with other values on each rank; all others are the same on all."""


def own_name(rank: int, name: str) -> str:
    """The name, in a joined graph, of what a rank has for itself."""
    return f"rank{rank}.{name}"


def join(graphs: Sequence[Graph], split: Split) -> Graph:
    """One graph that computes what the ranks compute together; its `logits` are those of the last stage.

    Weights and caches are named by `own_name`, the other inputs as in the whole graph.
    """
    joined = _Join(Graph.new("joined"), split)
    for stage in range(split.pp):
        joined.stage([graphs[split.rank(stage, shard)] for shard in range(split.shards)], stage)
    return joined.graph


def inputs_of_ranks(inputs: Mapping[str, np.ndarray], spec: DecoderSpec, placement: Placement) -> dict[str, np.ndarray]:
    """The inputs of the joined graph: of the caches ``f32 [B, K, C, D]`` of the whole graph, each rank's heads."""
    found = {name: value for name, value in inputs.items() if not name.startswith(_OF_EACH_RANK)}
    for rank in range(placement.split.ranks):
        for layer in range(*placement.stages[placement.split.stage(rank)]):
            mixer = spec.layers[layer].mixer
            if mixer.source is not None:
                continue
            start, stop = kv_heads(mixer, placement.split.shards)[placement.split.shard(rank)]
            for part in cache_of(mixer).parts:
                name = f"past.{layer}.{part}"
                found[own_name(rank, name)] = np.ascontiguousarray(inputs[name][:, start:stop])
    return found


class _Join:
    def __init__(self, graph: Graph, split: Split) -> None:
        self.graph, self.split = graph, split
        self.shared: dict[str, ir.Value] = {}
        self.sent: defaultdict[tuple[int, int], deque[ir.Value]] = defaultdict(deque)
        """Values on the way, by sender and receiver."""

    def stage(self, graphs: Sequence[Graph], stage: int) -> None:
        ranks = [self.split.rank(stage, shard) for shard in range(len(graphs))]
        values = [self._inputs(graph, rank) for graph, rank in zip(graphs, ranks, strict=True)]
        walks = [iter(list(graph.nodes)) for graph in graphs]
        shards = list(zip(walks, values, ranks, strict=True))
        while pauses := [pause for one in shards if (pause := self._walk(*one)) is not None]:
            self._collective(pauses, values)
        for graph, known, rank in zip(graphs, values, ranks, strict=True):
            self.graph.canonical.update(graph.canonical)
            for value in graph.body.outputs:
                name, made = str(value.name), known.get(value)
                if made is None or (name == "logits" and rank != ranks[0]):
                    continue
                made.name = own_name(rank, name) if name.startswith(_OF_EACH_RANK) else name
                self.graph.body.outputs.append(made)

    def _inputs(self, graph: Graph, rank: int) -> dict[ir.Value, ir.Value]:
        known = {}
        for value in graph.body.inputs:
            name, expr = str(value.name), graph.expr(value)
            if expr is not None:
                known[value] = self.graph.weight(own_name(rank, name), expr)
                continue
            name = own_name(rank, name) if name.startswith(_OF_EACH_RANK) else name
            if name not in self.shared:
                self.shared[name] = ir.Value(name=name, type=value.type, shape=value.shape)
                self.graph.body.inputs.append(self.shared[name])
            known[value] = self.shared[name]
        return known

    def _walk(self, walk: Iterator[ir.Node], known: dict[ir.Value, ir.Value], rank: int) -> ir.Node | None:
        """Copy nodes up to the next collective of the group, which is returned; None at the end."""
        for node in walk:
            if not is_collective(node):
                self._copy(node, known)
            elif node.op_type == "Send":
                self.sent[rank, attribute(node, "peer")].append(known[_only(node.inputs)])
            elif node.op_type == "Recv":
                known[node.outputs[0]] = self.sent[attribute(node, "peer"), rank].popleft()
            else:
                return node
        return None

    def _copy(self, node: ir.Node, known: dict[ir.Value, ir.Value]) -> None:
        made = self.graph.build(node.metadata_props[BLOCK])(
            node.op_type,
            *(None if value is None else known[value] for value in node.inputs),
            domain=node.domain,
            overload=node.overload,
            outputs=len(node.outputs),
            name=node.metadata_props.get(MODULE, ""),
            role=node.metadata_props.get(ROLE, ""),
            **{name: attr.value for name, attr in node.attributes.items()},
        )
        for before, after in zip(node.outputs, made if isinstance(made, tuple) else (made,), strict=True):
            known[before] = after
            if after.type is None:
                after.type, after.shape = before.type, before.shape

    def _collective(self, nodes: Sequence[ir.Node], values: Sequence[dict[ir.Value, ir.Value]]) -> None:
        """One operator for the nodes of all shards."""
        first = nodes[0]
        if {node.op_type for node in nodes} != {first.op_type} or len(nodes) != len(values):
            raise ValueError(f"the shards do not meet at {first.name}")
        scatters = first.op_type == "ReduceScatter"
        made = self.graph.build(first.metadata_props[BLOCK])(
            first.op_type,
            *(known[_only(node.inputs)] for node, known in zip(nodes, values, strict=True)),
            domain=ops.DOMAIN,
            overload=collectives.joined(len(nodes)),
            outputs=len(nodes) if scatters else 1,
            **{name: attr.value for name, attr in first.attributes.items() if name != "shard"},
        )
        results = made if scatters else (made,) * len(nodes)
        for node, known, result in zip(nodes, values, results, strict=True):
            known[node.outputs[0]] = result


def _only(values: Sequence[ir.Value | None]) -> ir.Value:
    (value,) = values
    assert value is not None
    return value
