"""The nodes of a cpu graph as what they compute: products, attention, elements; from any form of the graph.

Widths follow from weights and attributes alone, so a graph needs no types of the values in between.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

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

    @property
    def weights(self) -> int:
        return self.rows * self.columns

    @property
    def bytes(self) -> int:
        """Bytes of weights that the kernel reads: packed, a block has a scale and a sum in float32 beside its codes."""
        scales = self.rows * (self.columns // self.block) * 8 if self.block else 0
        return self.weights * self.bits // 8 + scales


@dataclass(frozen=True)
class Attention:
    """Attention of new tokens over the cache of one layer."""

    heads: int
    kv_heads: int
    head_dim: int
    window: int | None = None
    """Positions that a token reads; None: all."""
    label: str | None = None


@dataclass(frozen=True)
class Elements:
    """A node that makes `width` float32 numbers per token, row or step, and reads no weights but vectors."""

    op: str
    kind: Kind
    width: int
    per: Per
    label: str | None = None


Node = Product | Attention | Elements
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


@dataclass(frozen=True)
class _Value:
    per: Per
    width: int


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
        if node.op in _DENSE:
            shape = tuple(map(_size, self.shapes.get(node.inputs[1], ())))
            if len(shape) != 2 or not all(shape):
                raise ValueError(f"{node.op} {node.outputs[0]} has no weight of two dimensions")
            rows, columns = shape if node.numbers.get("transB", (0,))[0] else shape[::-1]
            return self._product(node, Product(rows, columns, 32, 0, per, node.block))
        if node.op in ("GroupQueryAttention", "Attention"):
            return self._attention(node)
        if node.op == "Constant":
            self.lists[node.outputs[0]] = node.numbers.get("value_ints", ())
        if node.op in ("Constant", "Shape"):
            return Elements(node.op, "other", 0, "step", node.block)
        return self._elements(node, given, per)

    def _product(self, node: GraphNode, product: Product) -> Product:
        self.values[node.outputs[0]] = _Value(product.per, product.rows)
        return product

    def _attention(self, node: GraphNode) -> Attention:
        shapes = (self.shapes.get(name) or self.caches.get(name) or () for name in node.inputs[1:])
        _, kv_heads, _, head_dim = map(_size, next(shape for shape in shapes if len(shape) == 4))
        query = self.values[node.inputs[0]].width  # with keys and values, where they are packed
        heads = node.numbers.get("num_heads", (query // max(head_dim, 1),))[0]
        self.values[node.outputs[0]] = _Value("token", heads * head_dim)
        window = node.numbers.get("local_window_size", (0,))[0]
        return Attention(heads, kv_heads, head_dim, window or None, node.block)

    def _elements(self, node: GraphNode, given: Sequence[_Value], per: Per) -> Elements:
        width = max((one.width for one in given), default=0)
        parts = [width] * len(node.outputs)
        if node.op in ("Gather", "GatherBlockQuantized"):
            per, width = self._gathered(node, per, width)
            parts = [width]
        elif node.op == "Split":
            sizes = next((self.lists[name] for name in node.inputs[1:] if name in self.lists), ())
            parts = list(sizes) or [width // len(parts)] * len(parts)
        elif node.op == "TensorScatter":  # new keys or values go into the cache, which is what it returns
            self.caches[node.outputs[0]] = self.shapes.get(node.inputs[0], ())
            parts = [0]
        self.values.update({name: _Value(per, part) for name, part in zip(node.outputs, parts, strict=True) if part})
        kind: Kind = "norm" if node.op in _NORMS else "activation" if node.op in _ACTIVATIONS else "other"
        return Elements(node.op, kind, 0 if node.op in _SAME_BYTES else width, per, node.block)

    def _gathered(self, node: GraphNode, per: Per, width: int) -> tuple[Per, int]:
        """Rows of a table for each token, or the wanted rows of an activation."""
        data = node.inputs[0]
        if data in self.values:
            return "row", width
        shape = self.shapes.get(data, ())
        if len(shape) != 2:
            return per, 0
        packed = node.numbers["bits"][0] if node.op == "GatherBlockQuantized" else 8
        return "token", _size(shape[1]) * 8 // packed


def _size(dim: int | str) -> int:
    """A size that is known before run time; 0 if it is not."""
    return dim if isinstance(dim, int) else 0
