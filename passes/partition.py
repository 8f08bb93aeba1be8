"""Splits a logical graph into one graph per rank: slices of weights, stages of layers, collectives between ranks.

Tensor parallelism is that of Megatron-LM (arXiv 1909.08053): a linear cut by rows gives each shard some of its
results, one cut by columns gives each shard a summand, which AllReduce adds up. The embedding and the head are cut by
rows of the vocabulary. Experts give summands too: a shard has some of them, or a part of each of some. All shards have
the same tokens, so none are sent to where their experts are. Pipeline parallelism: a stage receives the values of
earlier stages that it reads. Each shard sends one part of such a value and the receivers gather the parts; the parts of
a sum come from a ReduceScatter.

Weight formats are chosen before this pass and linears are merged after it, so it cuts stored tensors, between blocks.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import onnx_ir as ir

from ..runtime.engine_file.bind import Concat, Expr
from .crossings import Crossing, crossings, stage_of
from .cuts import BY_PARTS, OVER_ALL, columns, expert_parts, linear_parts, per_head, row_part
from .graph import ops
from .graph.experts import Mixture
from .graph.graph import BLOCK, MODULE, ROLE, Builder, Graph, attribute, dims, width
from .placement import COLUMNS, ROWS, Cut, Placement, spans
from .sums import Sums, cut_of


def partition(graph: Graph, placement: Placement, ranks: Collection[int] | None = None) -> Iterator[Graph]:
    """The graphs of all ranks, or of some, in their order.

    A weight has the same name on all shards of a stage, and other expressions. Inputs and outputs keep their names, and
    caches have the heads of the rank; a rank has those that it needs.
    """
    split = placement.split
    where = {node: stage_of(node, placement) for node in graph.nodes}
    sums = Sums.of(graph.nodes, placement)
    sent = crossings(where, sums)
    for rank in range(split.ranks) if ranks is None else sorted(ranks):
        yield _Rank(graph, placement, sums, split.stage(rank), split.shard(rank)).build(where, sent)


@dataclass
class _Rank:
    """Builds the graph of one rank from the nodes of the whole graph."""

    whole: Graph
    placement: Placement
    sums: Sums
    stage: int
    shard: int
    graph: Graph = field(init=False)
    values: dict[ir.Value, ir.Value] = field(default_factory=dict)
    """Of the whole graph, to those of this one."""
    sharded: set[ir.Value] = field(default_factory=set)
    """Values of which each shard has a part of the last axis."""

    def build(self, where: Mapping[ir.Node, int | None], sent: Sequence[Crossing]) -> Graph:
        self.graph = Graph.new(self.whole.body.name or "")
        self.graph.canonical.update(self.whole.canonical)
        for crossing in sent:
            if crossing.reader == self.stage:
                self.values[crossing.value] = self._received(crossing)
        for node, stage in where.items():
            if stage in (self.stage, None):
                self._node(node)
        for value in self.whole.body.outputs:
            if where[_made(value)] == self.stage:
                self.values[value].name = value.name
                self.graph.body.outputs.append(self.values[value])
        for crossing in sent:
            if crossing.source == self.stage:
                self.graph.body.outputs.append(self._sent(crossing))
        self.graph.remove_dead()
        for value in [value for value in self.graph.body.inputs if not value.uses()]:
            self.graph.body.inputs.remove(value)
        return self.graph

    def _node(self, node: ir.Node) -> None:
        special = {
            "Linear": self._linear,
            "Embedding": self._embedding,
            "CachedAttention": self._attention,
            "SharedAttention": self._attention,
            "LatentAttention": self._latent,
            "MoE": self._experts,
        }
        made = (special.get(node.op_type, self._same) if self.placement.split.shards > 1 else self._same)(node)
        if self.sums.adds_up(node):
            made = (self.graph.build(node.metadata_props[BLOCK]).llmc("AllReduce", *made),)
        self.values.update(zip(node.outputs, made, strict=True))

    def _inputs(self, node: ir.Node) -> list[ir.Value | None]:
        """The node's inputs on this rank; of an input with a row or a number for each head, those of this shard."""
        cut = per_head(node) if self.placement.split.shards > 1 else None
        return [
            None if value is None else self._of_heads(node.inputs[0], value) if index == cut else self._value(value)
            for index, value in enumerate(node.inputs)
        ]

    def _value(self, value: ir.Value) -> ir.Value:
        if value in self.values:
            return self.values[value]
        name, expr = str(value.name), self.whole.expr(value)
        if expr is not None:
            made = self.graph.weight(name, expr)
        else:
            assert value.is_graph_input(), f"{name} is of another stage"
            made = ir.Value(name=name, type=value.type, shape=value.shape)
            self.graph.body.inputs.append(made)
        self.values[value] = made
        return made

    def _same(self, node: ir.Node) -> tuple[ir.Value, ...]:
        """The node on this rank's values. What it makes of parts are parts, if it works on each element or head."""
        inputs, changed = self._inputs(node), {}
        if node.op_type in OVER_ALL and inputs[0] in self.sharded:
            return self._over_all(node, inputs)
        parts = [value in self.sharded for value in inputs if value is not None and self._varies(value)]
        if any(parts) and node.op_type == "RotaryEmbedding":
            changed["num_heads"] = attribute(node, "num_heads") * width(inputs[0]) // width(node.inputs[0])
        elif (any(parts) and node.op_type not in BY_PARTS) or (len({*parts}) > 1 and node.op_type != "CachedAttention"):
            raise ValueError(f"{node.name} cannot compute a part of {node.op_type}")
        return self._emit(node, inputs, parts=any(parts), **changed)

    def _emit(
        self,
        node: ir.Node,
        inputs: Sequence[ir.Value | None],
        *,
        parts: bool,
        overload: str | None = None,
        **changed: Any,
    ) -> tuple[ir.Value, ...]:
        b = self.graph.build(node.metadata_props[BLOCK])
        made = b(
            node.op_type,
            *inputs,
            domain=node.domain,
            overload=node.overload if overload is None else overload,
            outputs=len(node.outputs),
            name=node.metadata_props.get(MODULE, ""),
            role=node.metadata_props.get(ROLE, ""),
            **{name: attr.value for name, attr in node.attributes.items()} | changed,
        )
        made = made if isinstance(made, tuple) else (made,)
        for before, after in zip(node.outputs, made, strict=True):
            if after.type is None:
                after.type, after.shape = before.type, before.shape
            if parts:
                self.sharded.add(after)
        return made

    def _varies(self, value: ir.Value) -> bool:
        """Whether it is neither a weight nor integers, so that shards may have parts of it."""
        return self.graph.expr(value) is None and value.dtype == ir.DataType.FLOAT

    def _linear(self, node: ir.Node) -> tuple[ir.Value, ...]:
        cut, x = cut_of(node, self.placement), self._value(_given(node.inputs[0]))
        if (x in self.sharded) != (cut is not None and cut.axis == COLUMNS):
            which = "a part" if x in self.sharded else "the whole"
            raise ValueError(f"{node.name} cannot read {which} of its input")
        if cut is None:
            return self._emit(node, self._inputs(node), parts=False)
        fmt, biased = ops.format_of(node), ops.has_bias(node)
        components = self._cut(node.inputs[1 : len(node.inputs) - biased], fmt, cut)
        bias = node.inputs[-1] if biased else None
        b = self.graph.build(node.metadata_props[BLOCK])
        if cut.axis == COLUMNS:
            (part,) = self._emit(node, [x, *components], parts=False, overload=ops.overload_of(fmt))
            if bias is None:
                return (part,)
            return (b("Add", b.llmc("AllReduce", part), self._value(bias)),)  # the bias is added to the sum, once
        biases = () if bias is None else self._cut([bias], ops.DENSE, cut)
        (part,) = self._emit(node, [x, *components, *biases], parts=True)
        if node.metadata_props[BLOCK] != "head":
            return (part,)
        sizes = [stop - start for start, stop in cut.spans]
        return (b.llmc("AllGather", part, axis=len(dims(part)) - 1, sizes=sizes),)

    def _cut(self, components: Sequence[ir.Value | None], fmt: str, cut: Cut) -> list[ir.Value]:
        """This shard's part of the stored components of a weight, or of a bias."""
        return self._weights(components, linear_parts(self.whole, components, fmt, cut, self.shard))

    def _weights(self, values: Sequence[ir.Value | None], parts: Iterable[Expr]) -> list[ir.Value]:
        return [self.graph.weight(str(_given(value).name), expr) for value, expr in zip(values, parts, strict=True)]

    def _experts(self, node: ir.Node) -> tuple[ir.Value, ...]:
        """A summand: what this shard's part of the experts adds."""
        inputs = [self._value(_given(value)) for value in node.inputs[:3]]
        if self.sharded & {*inputs}:
            raise ValueError(f"{node.name} cannot read a part of its input")
        first, parts = expert_parts(self.whole, node, self.placement, self.shard)
        inputs += self._weights(node.inputs[3:], parts)
        if self.placement.split.ep == 1:
            return self._emit(node, inputs, parts=False)
        overload = replace(Mixture.of(node.overload), part=True).overload
        return self._emit(node, inputs, parts=False, overload=overload, start=first)

    def _embedding(self, node: ir.Node) -> tuple[ir.Value, ...]:
        cut = Cut(ROWS, self.placement.vocabulary)
        components = self._cut(node.inputs[1:], ops.format_of(node), cut)
        ids = self._value(_given(node.inputs[0]))
        start, overload = cut.spans[self.shard][0], f"{node.overload}{ops.PART}"
        (part,) = self._emit(node, [ids, *components], parts=False, overload=overload, start=start)
        return (self.graph.build(node.metadata_props[BLOCK]).llmc("AllReduce", part),)

    def _over_all(self, node: ir.Node, inputs: Sequence[ir.Value | None]) -> tuple[ir.Value, ...]:
        """A norm of all heads together: gathers them, and keeps its own part."""
        b, part = self.graph.build(node.metadata_props[BLOCK]), _given(inputs[0])
        sizes = [stop - start for start, stop in self._cut_behind(node.inputs[0]).spans]
        whole = b.llmc("AllGather", part, axis=len(dims(part)) - 1, sizes=sizes)
        (normed,) = self._emit(node, [whole, *inputs[1:]], parts=False)
        own = columns(b, normed, sizes)[self.shard]
        self.sharded.add(own)
        return (own,)

    def _cut_behind(self, value: ir.Value | None) -> Cut:
        """How the linear that makes a value is cut."""
        node = _made(value)
        while node.op_type != "Linear":
            node = _made(node.inputs[0])
        cut = cut_of(node, self.placement)
        assert cut is not None and cut.axis == ROWS
        return cut

    def _of_heads(self, value: ir.Value | None, weight: ir.Value | None) -> ir.Value:
        """This shard's rows of a weight with one row, or one number, for each head."""
        expr, each = self.whole.expr(weight), width(value) // int(dims(weight)[0])
        start, stop = (at // each for at in self._cut_behind(value).spans[self.shard])
        joined = Concat(expr.parts[start:stop], 0) if isinstance(expr, Concat) else None
        return self.graph.weight(str(_given(weight).name), joined or row_part(self.whole, weight, start, stop))

    def _attention(self, node: ir.Node) -> tuple[ir.Value, ...]:
        inputs = self._inputs(node)
        size, shared = attribute(node, "head_dim"), node.op_type == "SharedAttention"
        q, *others = map(_given, inputs)
        if shared:
            kv_heads = int(dims(others[0])[1])
        else:
            kv_heads = width(others[0]) // size
            for cache in others[2:4]:
                batch, _, *rest = dims(cache)
                cache.shape = ir.Shape([batch, kv_heads, *rest])
        if not {q, *(() if shared else others[:2])} <= self.sharded:
            raise ValueError(f"{node.name} cannot compute some of its heads")
        made = self._emit(node, inputs, parts=False, heads=width(q) // size, kv_heads=kv_heads)
        self.sharded.add(made[0])
        return made

    def _latent(self, node: ir.Node) -> tuple[ir.Value, ...]:
        """This shard's heads; all shards have the same rows in their caches."""
        q, latent, key, weight, *others = node.inputs
        own, rows = self._value(_given(q)), (self._value(_given(latent)), self._value(_given(key)))
        if own not in self.sharded or not self.sharded.isdisjoint(rows):
            raise ValueError(f"{node.name} cannot compute some of its heads")
        start, stop = self._cut_behind(q).spans[self.shard]
        each = width(q) // attribute(node, "heads")
        first, last = (at // each * int(dims(weight)[0]) // attribute(node, "heads") for at in (start, stop))
        part = self.graph.weight(str(_given(weight).name), row_part(self.whole, weight, first, last))
        inputs = (own, *rows, part, *(None if one is None else self._value(one) for one in others))
        made = self._emit(node, inputs, parts=False, heads=(stop - start) // each)
        self.sharded.add(made[0])
        return made

    def _received(self, crossing: Crossing) -> ir.Value:
        split, value = self.placement.split, crossing.value
        b = self.graph.build(f"layer.{self.placement.stages[self.stage][0]}")
        received = b.llmc("Recv", peer=split.rank(crossing.source, self.shard), number=crossing.number)
        sizes = self._sizes(value)
        received.type, received.shape = value.type, ir.Shape([*dims(value)[:-1], sizes[self.shard]])
        return received if split.shards == 1 else b.llmc("AllGather", received, axis=len(dims(value)) - 1, sizes=sizes)

    def _sent(self, crossing: Crossing) -> ir.Value:
        split, value = self.placement.split, self.values[crossing.value]
        b = self.graph.build(f"layer.{self.placement.stages[self.stage][1] - 1}")
        if crossing.summand is not None:
            terms = list(_made(value).inputs)
            total, rest = terms[crossing.summand], terms[1 - crossing.summand]
            axis, sizes = len(dims(value)) - 1, self._sizes(value)
            terms[crossing.summand] = b.llmc(
                "ReduceScatter", _made(total).inputs[0], axis=axis, sizes=sizes, shard=self.shard
            )
            terms[1 - crossing.summand] = self._own(b, _given(rest))
            value = b("Add", *terms)
        elif split.shards > 1:
            value = self._own(b, value)
        sent = b.llmc("Send", value, peer=split.rank(crossing.reader, self.shard), number=crossing.number)
        sent.name = f"sent.{crossing.number}"
        return sent

    def _sizes(self, value: ir.Value) -> list[int]:
        """Widths of the parts of a value that shards send."""
        return [stop - start for start, stop in spans(width(value), self.placement.split.shards)]

    def _own(self, b: Builder, value: ir.Value) -> ir.Value:
        """This shard's part of a value that all shards have."""
        return columns(b, value, self._sizes(value))[self.shard]


def _given(value: ir.Value | None) -> ir.Value:
    assert value is not None
    return value


def _made(value: ir.Value | None) -> ir.Node:
    node = _given(value).producer()
    assert node is not None
    return node
