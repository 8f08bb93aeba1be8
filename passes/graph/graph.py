"""The graph that every pass reads and rewrites: ONNX in memory, and an expression for each weight.

A weight is a graph input. Its weight expression (`runtime/engine_file/bind.py`) computes it from canonical tensors, the
tensors an engine stores; each has an origin: copied from the checkpoint, quantized, or computed. So a graph is a valid
ONNX model at every stage, and no weight is read before the graph runs or the engine is written. A weight expression
gives numbers in their stored type; `Graph.bound` widens bf16 and fp16 to float32 for function bodies.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir

from ...runtime.dtypes import DTYPES
from ...runtime.engine_file.bind import Expr, Stored, as_f32, stored
from . import ops
from .types import infer

OPSETS = {"": 24, ops.DOMAIN: 1, "com.microsoft": 1}
IR_VERSION = 11
BLOCK, MODULE, ROLE = "block", "module", "role"
"""Keys of a node's metadata: its block, the module of the checkpoint that it computes, and its part in the model."""
GATED = "gated"
"""The role of the two linears of a gated MLP, gate and up."""
KEPT = "kept"
"""The role of linears that no recipe quantizes, such as routers."""


@dataclass(frozen=True)
class Copied:
    """The unchanged bytes of a checkpoint tensor."""

    tensor: str


@dataclass(frozen=True)
class Quantized:
    """One stored component (`suffix`) of a checkpoint tensor in a weight format."""

    format: str
    tensor: str
    suffix: str
    shares: tuple[str, ...]
    """The tensors that share one global scale, this one included."""


@dataclass(frozen=True, eq=False)
class Computed:
    """Numbers that the compiler computes, such as rope tables."""

    data: np.ndarray
    how: str
    """The settings behind the numbers, for people."""


Origin = Copied | Quantized | Computed


@dataclass(frozen=True)
class Canonical(Stored):
    """A tensor that the engine stores."""

    origin: Origin
    """Where its bytes come from."""
    group: str
    """Tensors of one group lie next to each other in the file."""

    @property
    def stored(self) -> Stored:
        return Stored(self.name, self.dtype, self.shape)


@dataclass
class Graph:
    """An ONNX graph, its weight expressions, and the canonical tensors that they read."""

    model: ir.Model
    weights: dict[str, Expr] = field(default_factory=dict)
    canonical: dict[str, Canonical] = field(default_factory=dict)
    serial: int = 0
    """The number in the latest of its fresh names."""

    @classmethod
    def new(cls, name: str) -> Graph:
        graph = ir.Graph([], [], nodes=[], name=name, opset_imports=OPSETS.copy())
        return cls(ir.Model(graph, ir_version=IR_VERSION, producer_name="llmc"))

    @property
    def body(self) -> ir.Graph:
        return self.model.graph

    @property
    def nodes(self) -> Iterator[ir.Node]:
        return iter(self.body)

    def input(self, name: str, dtype: str, shape: Sequence[int | str]) -> ir.Value:
        """Declare a run-time input."""
        bits = ir.DataType(DTYPES[dtype].onnx or ir.DataType.UINT8)  # of 8-bit floats
        value = ir.Value(name=name, type=ir.TensorType(bits), shape=ir.Shape(shape))
        self.body.inputs.append(value)
        return value

    def weight(self, name: str, expr: Expr, *, widen: bool = True) -> ir.Value:
        """The weight that `expr` computes; the same name with the same expression is one value.

        With `widen`, nodes read bf16 and fp16 numbers as float32, else in their stored type.
        """
        if name in self.weights:
            if self.weights[name] != expr:
                raise ValueError(f"weight {name!r} has two expressions")
            return next(value for value in self.body.inputs if value.name == name)
        self.weights[name] = expr
        return self.input(name, "F32" if widen and expr.dtype in ("BF16", "F16") else expr.dtype, expr.shape)

    def bound(self) -> dict[str, Expr]:
        """The expression of each weight, by name, in its graph input's type: converted where that is float32."""
        widen = {value.name for value in self.body.inputs if value.dtype == ir.DataType.FLOAT}
        return {name: as_f32(expr) if name in widen else expr for name, expr in self.weights.items()}

    def expr(self, value: ir.Value | None) -> Expr | None:
        """The expression of a weight, or None if `value` is no weight."""
        return None if value is None else self.weights.get(value.name or "")

    def store(self, tensor: Canonical) -> Stored:
        """Add a canonical tensor, unless an equal one is there."""
        known = self.canonical.setdefault(tensor.name, tensor)
        if known.dtype != tensor.dtype or known.shape != tensor.shape:
            raise ValueError(f"canonical tensor {tensor.name!r} has two types or shapes")
        return known.stored

    def copy(self) -> Graph:
        """An independent graph, because each profile rewrites its own."""
        clone = self.body.clone()
        model = ir.Model(clone, ir_version=IR_VERSION, producer_name="llmc")
        return Graph(model, dict(self.weights), dict(self.canonical), self.serial)

    def fresh(self, stem: str) -> str:
        self.serial += 1
        return f"{stem}_{self.serial}"

    def build(self, block: str, before: ir.Node | None = None) -> Builder:
        return Builder(self, block, before)

    def remove_dead(self) -> int:
        """Remove nodes and weights without a reader; returns how many nodes were removed."""
        removed = 0
        outputs = set(self.body.outputs)
        for node in reversed(list(self.body)):
            if all(value not in outputs and not value.uses() for value in node.outputs):
                self.body.remove(node, safe=True)
                removed += 1
        for value in [v for v in self.body.inputs if v.name in self.weights and not v.uses() and v not in outputs]:
            self.body.inputs.remove(value)
            del self.weights[value.name or ""]
        used = {leaf.name for expr in self.weights.values() for leaf in stored(expr)}
        self.canonical = {name: tensor for name, tensor in self.canonical.items() if name in used}
        return removed

    def to_proto(self) -> onnx.ModelProto:
        """A valid ONNX model with the functions that it uses; weights are inputs."""
        proto = ir.to_proto(self.model)
        proto.functions.extend(ops.functions(self.nodes))
        return proto

    def text(self) -> str:
        """The graph as ONNX text, without function bodies."""
        return onnx.printer.to_text(ir.to_proto(self.model).graph) + "\n"


@dataclass(frozen=True)
class Builder:
    """Appends nodes to a graph, or inserts them before a node; sets their block and the types of their results."""

    graph: Graph
    block: str
    before: ir.Node | None = None

    def __call__(
        self,
        op: str,
        *inputs: ir.Value | None,
        domain: str = "",
        overload: str = "",
        outputs: int = 1,
        name: str = "",
        role: str = "",
        **attributes: Any,
    ) -> Any:
        """One node; its value, or a tuple of them when `outputs` > 1. `name` is the checkpoint's module, if any."""
        while inputs and inputs[-1] is None:
            inputs = inputs[:-1]
        node = ir.Node(
            domain,
            op,
            inputs,
            ir.convenience.convert_attributes(attributes),
            overload=overload,
            num_outputs=outputs,
            name=self.graph.fresh(name or op),
            metadata_props={k: v for k, v in ((BLOCK, self.block), (MODULE, name), (ROLE, role)) if v},
        )
        for index, value in enumerate(node.outputs):
            value.name = f"{node.name}.{index}" if outputs > 1 else node.name
        infer(node)
        if self.before is None:
            self.graph.body.append(node)
        else:
            self.graph.body.insert_before(self.before, node)
        return node.outputs[0] if outputs == 1 else tuple(node.outputs)

    def llmc(self, op: str, *inputs: ir.Value | None, **options: Any) -> Any:
        return self(op, *inputs, domain=ops.DOMAIN, **options)

    def ms(self, op: str, *inputs: ir.Value | None, **options: Any) -> Any:
        return self(op, *inputs, domain="com.microsoft", **options)

    def ints(self, *values: int) -> ir.Value:
        """A small int64 vector."""
        return self("Constant", value_ints=list(values))


def attribute(node: ir.Node, name: str, default: Any = None) -> Any:
    """The Python value of a node's attribute."""
    found = node.attributes.get(name)
    return default if found is None else found.value


def dims(value: ir.Value | None) -> tuple[int | str, ...]:
    """The dimensions of a typed value: numbers, or letters where they vary at run time."""
    assert value is not None and value.shape is not None, f"no shape for {value}"
    return tuple(dim if isinstance(dim, int) else str(dim.value) for dim in value.shape)


def width(value: ir.Value | None) -> int:
    """The last dimension of a value, which is fixed for activations and weights."""
    last = dims(value)[-1]
    assert isinstance(last, int), f"{value} varies in its last dimension"
    return last


def block_of(nodes: Iterable[ir.Node]) -> str:
    """The last block of these nodes, in graph order: there all inputs of a fused node are ready."""
    labels = [node.metadata_props.get(BLOCK, "") for node in nodes]
    return max(labels, key=_block_order)


def _block_order(label: str) -> tuple[int, int]:
    kind, _, index = label.partition(".")
    return {"embed": 0, "layer": 1, "head": 2}.get(kind, 0), int(index or 0)
