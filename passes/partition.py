"""Splits a logical graph into one graph per rank: slices of weights, stages of layers, collectives between ranks.

Tensor parallelism is that of Megatron-LM (arXiv 1909.08053): a linear cut by rows gives each shard some of its
results, one cut by columns gives each shard a summand, which AllReduce adds up. The embedding and the head are cut by
rows of the vocabulary. Pipeline parallelism: a stage receives the values of earlier stages that it reads. Each shard
sends one part of such a value and the receivers gather the parts; the parts of a sum come from a ReduceScatter.

Weight formats are chosen before this pass and linears are merged after it, so it cuts stored tensors, between blocks.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import onnx_ir as ir

from ..quantize import FORMATS
from ..runtime.engine_file.bind import Concat, Expr, Slice, Stored
from .crossings import Crossing, crossings, cut_of, stage_of
from .graph import attention, ops
from .graph.attention import SINKS
from .graph.graph import BLOCK, MODULE, ROLE, Builder, Graph, attribute, dims, width
from .graph.pointwise import ACTIVATIONS
from .placement import COLUMNS, ROWS, Cut, Placement, spans


def partition(graph: Graph, placement: Placement, ranks: Collection[int] | None = None) -> Iterator[Graph]:
    """The graphs of all ranks, or of some, in their order.

    A weight has the same name on all shards of a stage, and other expressions. Inputs and outputs keep their names, and
    caches have the heads of the rank; a rank has those that it needs.
    """
    split = placement.split
    where = {node: stage_of(node, placement) for node in graph.nodes}
    sent = crossings(where, placement)
    for rank in range(split.ranks) if ranks is None else sorted(ranks):
        yield _Rank(graph, placement, split.stage(rank), split.shard(rank)).build(where, sent)


@dataclass
class _Rank:
    """Builds the graph of one rank from the nodes of the whole graph."""

    whole: Graph
    placement: Placement
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
        }
        made = (special.get(node.op_type, self._same) if self.placement.split.tp > 1 else self._same)(node)
        self.values.update(zip(node.outputs, made, strict=True))

    def _inputs(self, node: ir.Node) -> list[ir.Value | None]:
        """The node's inputs on this rank; of an input with a row or a number for each head, those of this shard."""
        cut = _per_head(node) if self.placement.split.tp > 1 else None
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
        if node.op_type in _OVER_ALL and inputs[0] in self.sharded:
            return self._over_all(node, inputs)
        parts = [value in self.sharded for value in inputs if value is not None and self._varies(value)]
        if any(parts) and node.op_type == "RotaryEmbedding":
            changed["num_heads"] = attribute(node, "num_heads") * width(inputs[0]) // width(node.inputs[0])
        elif (any(parts) and node.op_type not in _BY_PARTS) or (
            len({*parts}) > 1 and node.op_type != "CachedAttention"
        ):
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
        if cut.axis == COLUMNS:  # the bias is added to the sum, once
            (part,) = self._emit(node, [x, *components], parts=False, overload=ops.overload_of(fmt))
            total = b.llmc("AllReduce", part)
            return (total if bias is None else b("Add", total, self._value(bias)),)
        biases = () if bias is None else self._cut([bias], ops.DENSE, cut)
        (part,) = self._emit(node, [x, *components, *biases], parts=True)
        if node.metadata_props[BLOCK] != "head":
            return (part,)
        sizes = [stop - start for start, stop in cut.spans]
        return (b.llmc("AllGather", part, axis=len(dims(part)) - 1, sizes=sizes),)

    def _cut(self, components: Sequence[ir.Value | None], fmt: str, cut: Cut) -> list[ir.Value]:
        """This shard's part of the stored components of a weight, or of a bias."""
        start, stop = cut.spans[self.shard]
        layouts = FORMATS[fmt].layouts if fmt != ops.DENSE else (None,)
        made = []
        for value, layout in zip(components, layouts, strict=True):
            expr = self.whole.expr(value)
            assert isinstance(expr, Stored) and value is not None
            step = 1 if layout is None else layout.step
            axes = "nk" if layout is None else layout.axes
            made.append(self.graph.weight(str(value.name), _sliced(expr, axes, cut.axis, start, stop, step)))
        return made

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
        own = self._split(b, normed, sizes)[self.shard]
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
        expr, per_head = self.whole.expr(weight), width(value) // int(dims(weight)[0])
        start, stop = (at // per_head for at in self._cut_behind(value).spans[self.shard])
        assert expr is not None and weight is not None
        cut = Concat(expr.parts[start:stop], 0) if isinstance(expr, Concat) else _row_part(expr, start, stop)
        return self.graph.weight(str(weight.name), cut)

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
        each, expr = width(q) // attribute(node, "heads"), self.whole.expr(weight)
        first, last = (at // each * int(dims(weight)[0]) // attribute(node, "heads") for at in (start, stop))
        assert expr is not None
        part = self.graph.weight(str(_given(weight).name), _row_part(expr, first, last))
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
        return received if split.tp == 1 else b.llmc("AllGather", received, axis=len(dims(value)) - 1, sizes=sizes)

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
        elif split.tp > 1:
            value = self._own(b, value)
        sent = b.llmc("Send", value, peer=split.rank(crossing.reader, self.shard), number=crossing.number)
        sent.name = f"sent.{crossing.number}"
        return sent

    def _sizes(self, value: ir.Value) -> list[int]:
        """Widths of the parts of a value that shards send."""
        return [stop - start for start, stop in spans(width(value), self.placement.split.tp)]

    def _own(self, b: Builder, value: ir.Value) -> ir.Value:
        """This shard's part of a value that all shards have."""
        return self._split(b, value, self._sizes(value))[self.shard]

    @staticmethod
    def _split(b: Builder, value: ir.Value, sizes: Sequence[int]) -> Sequence[ir.Value]:
        parts = b("Split", value, b.ints(*sizes), outputs=len(sizes), axis=len(dims(value)) - 1)
        parts = parts if isinstance(parts, tuple) else (parts,)
        for part, size in zip(parts, sizes, strict=True):
            part.type, part.shape = value.type, ir.Shape([*dims(value)[:-1], size])
        return parts


_BY_PARTS = {"Add", "Mul", "Scale", "HeadNorm", "SelectRows", "Activation", *(op for op, _ in ACTIVATIONS.values())}
"""Operators that compute a part of their result from the same part of their inputs."""
_OVER_ALL = {"RMSNormalization", "LayerNormalization"}
"""Operators that need all of the last axis."""


def _per_head(node: ir.Node) -> int | None:
    """The input of a node that has a row or a number for each head, if one has."""
    if node.op_type in ("CachedAttention", "SharedAttention") and SINKS in node.overload:
        return len(node.inputs) - 1
    return 1 if node.op_type == "HeadNorm" and attention.EACH in node.overload else None


def _given(value: ir.Value | None) -> ir.Value:
    assert value is not None
    return value


def _made(value: ir.Value | None) -> ir.Node:
    node = _given(value).producer()
    assert node is not None
    return node


def _row_part(expr: Expr, start: int, stop: int) -> Expr:
    assert isinstance(expr, Stored)
    return Slice(expr, 0, start, stop)


def _sliced(stored: Stored, axes: str, axis: int, start: int, stop: int, step: int) -> Expr:
    """Rows or columns of one stored component of a weight [n, k]; `step` weights along k share an element of it."""
    if axis == ROWS:
        return Slice(stored, 0, start, stop) if "n" in axes else stored
    return Slice(stored, 1, start // step, stop // step) if "k" in axes else stored
