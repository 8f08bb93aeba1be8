"""The nodes of a cpu graph as what they compute: products, attention, elements; from any form of the graph.

Widths follow from weights and attributes alone, so a graph needs no types of the values in between.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal

from ..plan.formula import expected_experts

Per = Literal["token", "row", "step"]
"""What a node computes its numbers for: each new token, each wanted row of logits, or once."""
Kind = Literal["norm", "activation", "other"]


@dataclass(frozen=True)
class GraphNode:
    """A node as a graph has it."""

    domain: str
    op: str
    inputs: Sequence[str]
    """Names; "" is absent."""
    outputs: Sequence[str]
    numbers: Mapping[str, Sequence[int]] = field(default_factory=dict)
    """Attributes that are whole numbers, or lists of them."""
    block: str | None = None
    """Its block's label, where the graph has labels."""


@dataclass(frozen=True)
class CpuGraph:
    """The nodes of a graph in their order, and the shapes of its inputs and weights; a text is a size of run time."""

    nodes: tuple[GraphNode, ...]
    shapes: Mapping[str, tuple[int | str, ...]]


@dataclass(frozen=True)
class Product:
    """x [M, columns] times weights [rows, columns]."""

    rows: int
    columns: int
    bits: int
    block: int
    """0 for float32 weights, whose bits are 32."""
    per: Per
    label: str | None = None
    share: tuple[int, int] | None = None
    """(k, E): it is of one of E experts, of which a token chooses k; None: all tokens compute it."""

    @property
    def weights(self) -> int:
        return self.rows * self.columns

    def read(self, tokens: int) -> float:
        """How often a step of so many tokens reads its weights: once, or the chance that one of them chose it."""
        return 1.0 if self.share is None else expected_experts(self.share[1], self.share[0], tokens) / self.share[1]

    def tokens(self, tokens: int) -> float:
        """How many of so many tokens it computes, on average."""
        return tokens if self.share is None else tokens * self.share[0] / self.share[1]

    @property
    def bytes(self) -> int:
        """Bytes of weights that the kernel reads: packed, a block has a scale and a sum in float32 beside its codes."""
        scales = self.rows * (self.columns // self.block) * 8 if self.block else 0
        return self.weights * self.bits // 8 + scales


@dataclass(frozen=True)
class Mixture:
    """Both products of every expert, of which only the chosen ones compute."""

    up: Product
    """Of one expert, with gate; so is `down`."""
    down: Product
    label: str | None = None

    @property
    def experts(self) -> int:
        assert self.up.share is not None
        return self.up.share[1]


@dataclass(frozen=True)
class Attention:
    """Attention of new tokens over the cache of one layer."""

    heads: int
    kv_heads: int
    head_dim: int
    window: int | None = None
    """Positions that a token reads; None: all."""
    label: str | None = None
    values_are_keys: bool = False
    """Rows of latent attention, which all heads share."""


@dataclass(frozen=True)
class Elements:
    """A node that makes `width` float32 numbers per token, row or step, and reads no weights but vectors."""

    op: str
    kind: Kind
    width: int
    per: Per
    label: str | None = None


Node = Product | Mixture | Attention | Elements
_NORMS = ("SimplifiedLayerNormalization", "SkipSimplifiedLayerNormalization", "RMSNormalization")
_ACTIVATIONS = ("QuickGelu", "Sigmoid", "Gelu", "Tanh", "Swish", "Softmax")
_DENSE = ("FusedMatMul", "MatMul", "Gemm")
_SAME_BYTES = ("Reshape", "Unsqueeze", "Squeeze", "Identity")


def nodes_of(graph: CpuGraph) -> tuple[Node, ...]:
    """What each node of a graph computes, in order.

    Raises:
        ValueError: a product has no weights of a known shape.
    """
    reading = _Reading(graph.shapes)
    return tuple(reading.node(node) for node in graph.nodes)


def read_bytes(nodes: Iterable[Node], *, tokens: int) -> int:
    """Bytes of weights that a step of so many tokens reads; of experts the expected ones."""
    return round(sum(_bytes(node, tokens) for node in nodes))


def _bytes(node: Node, tokens: int) -> float:
    match node:
        case Product():
            return node.bytes * node.read(tokens)
        case Mixture():
            return node.experts * (_bytes(node.up, tokens) + _bytes(node.down, tokens))
        case _:
            return 0.0


@dataclass(frozen=True)
class _Value:
    per: Per
    width: int
    among: int = 0
    """If its rows are those of experts: of so many experts."""
    chosen: int = 0
    """The experts of a token; 0 where they are the width, as of a router's choice."""


@dataclass(frozen=True)
class _Reading:
    """Activations so far: what each holds numbers for, and how many."""

    shapes: Mapping[str, tuple[int | str, ...]]
    values: dict[str, _Value] = field(default_factory=dict)
    lists: dict[str, Sequence[int]] = field(default_factory=dict)
    """Constants."""
    caches: dict[str, tuple[int | str, ...]] = field(default_factory=dict)
    """Shapes of caches that nodes return."""

    def node(self, node: GraphNode) -> Node:
        given = [self.values[name] for name in node.inputs if name in self.values]
        per: Per = "row" if any(one.per == "row" for one in given) else "token" if given else "step"
        if node.op == "MatMulNBits":
            rows, columns, bits, block = (node.numbers[key][0] for key in ("N", "K", "bits", "block_size"))
            return self._product(node, Product(rows, columns, bits, block, per, node.block))
        if node.op == "QMoE":
            return self._mixture(node, per)
        if node.op in _DENSE:
            shape = tuple(map(_size, self.shapes.get(node.inputs[1], ())))
            if len(shape) not in (2, 3) or not all(shape):
                raise ValueError(f"{node.op} {node.outputs[0]} has no weight of two dimensions, or three")
            *heads, rows, columns = shape if node.numbers.get("transB", (0,))[0] else (*shape[:-2], *shape[:-3:-1])
            return self._product(node, Product(math.prod(heads) * rows, columns, 32, 0, per, node.block))
        if node.op in ("GroupQueryAttention", "Attention"):
            return self._attention(node)
        if node.op == "Constant":
            self.lists[node.outputs[0]] = node.numbers.get("value_ints", node.numbers.get("value_int", ()))
        if node.op in _SAME_BYTES and node.inputs[0] in self.lists:
            self.lists[node.outputs[0]] = self.lists[node.inputs[0]]
        if node.op in ("Constant", "Shape"):
            return Elements(node.op, "other", 0, "step", node.block)
        return self._elements(node, given, per)

    def _product(self, node: GraphNode, product: Product) -> Product:
        given = self.values.get(node.inputs[0], _Value(product.per, 0))
        made = _Value(product.per, product.rows, given.among, given.chosen)
        self.values[node.outputs[0]] = made
        return replace(product, share=(made.chosen, made.among)) if made.chosen else product

    def _mixture(self, node: GraphNode, per: Per) -> Mixture:
        up, down = (tuple(map(_size, self.shapes[node.inputs[at]])) for at in (2, 5))
        bits, others, block, chosen = (
            node.numbers[key][0] for key in ("expert_weight_bits", "fc2_expert_weight_bits", "block_size", "k")
        )
        self.values[node.outputs[0]] = _Value(per, down[1])
        products = (
            Product(rows, columns * 8 // width, width, block, per, node.block, (chosen, experts))
            for (experts, rows, columns), width in ((up, bits), (down, others))
        )
        return Mixture(next(products), next(products), node.block)

    def _attention(self, node: GraphNode) -> Attention:
        shapes = (self.shapes.get(name) or self.caches.get(name) or () for name in node.inputs[1:])
        cache = next(shape for shape in shapes if len(shape) == 4)
        _, kv_heads, _, head_dim = map(_size, cache)
        self.caches.update(dict.fromkeys(node.outputs[1:], cache))  # which later layers may read
        query = self.values[node.inputs[0]].width  # with keys and values, where they are packed
        heads = node.numbers.get("num_heads", (query // max(head_dim, 1),))[0]
        self.values[node.outputs[0]] = _Value("token", heads * head_dim)
        window = node.numbers.get("local_window_size", (0,))[0]
        same = node.op == "GroupQueryAttention" and len(node.inputs) > 2 and node.inputs[1] == node.inputs[2] != ""
        return Attention(heads, kv_heads, head_dim, window or None, node.block, same)

    def _elements(self, node: GraphNode, given: Sequence[_Value], per: Per) -> Elements:
        width = max((one.width for one in given), default=0)
        parts = [width] * len(node.outputs)
        among, chosen = self._of_experts(node, given)
        if node.op in ("Gather", "GatherBlockQuantized"):
            per, width = self._gathered(node, per, width, among)
            parts = [width]
        elif node.op == "TopK" and node.inputs[1] in self.lists:  # a router's choice
            parts = [*self.lists[node.inputs[1]]] * len(parts)
        elif node.op == "GatherElements":
            parts = [self.values[node.inputs[1]].width]
        elif node.op == "Concat" and among and not chosen:  # choices that were made one after the other
            parts = [sum(one.width for one in given)]
        elif node.op == "Split":
            sizes = next((self.lists[name] for name in node.inputs[1:] if name in self.lists), ())
            parts = list(sizes) or [width // (1 if chosen else len(parts))] * len(parts)
        elif node.op == "TensorScatter":  # new keys or values go into the cache, which is what it returns
            self.caches[node.outputs[0]] = self.shapes.get(node.inputs[0], ())
            parts = [0]
        made = (_Value(per, part, among, chosen) for part in parts)
        self.values.update({name: one for name, one in zip(node.outputs, made, strict=True) if one.width})
        kind: Kind = "norm" if node.op in _NORMS else "activation" if node.op in _ACTIVATIONS else "other"
        return Elements(node.op, kind, 0 if node.op in _SAME_BYTES else width, per, node.block)

    def _of_experts(self, node: GraphNode, given: Sequence[_Value]) -> tuple[int, int]:
        """What `_Value` says of experts, of what a node makes: (among, chosen)."""
        if node.op == "ReduceSum":  # the experts of a token are added up
            return 0, 0
        if node.op == "TopK" and node.inputs[1] in self.lists:
            return given[0].width, 0
        among, chosen = (max((getattr(one, key) for one in given), default=0) for key in ("among", "chosen"))
        places = self.values.get(node.inputs[1]) if node.op == "Gather" and node.inputs[0] in self.values else None
        if places is not None and places.among and not chosen:  # a row for each expert of each token
            chosen = places.width
        return among, chosen

    def _gathered(self, node: GraphNode, per: Per, width: int, among: int) -> tuple[Per, int]:
        """Rows of a table for each token, rows of an activation for the experts of each, or its wanted rows."""
        data = node.inputs[0]
        if data in self.values:
            return (per, self.values[data].width) if among else ("row", width)
        shape = self.shapes.get(data, ())
        if len(shape) != 2:
            return per, 0
        packed = node.numbers["bits"][0] if node.op == "GatherBlockQuantized" else 8
        return "token", _size(shape[1]) * 8 // packed


def _size(dim: int | str) -> int:
    """A size that is known before run time; 0 if it is not."""
    return dim if isinstance(dim, int) else 0
