"""Lowers norms of heads and LayerNorms, and operators on single elements, each to a launch of its own."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import onnx_ir as ir

from .....passes.graph.attention import LAYER
from .....passes.graph.graph import attribute
from ..call import KernelCall, Operand
from ..kernels import columns, pointwise
from ..kernels.head_norm import head_norm
from ..lowering import Lowering
from . import experts


def _norm(at: Lowering, node: ir.Node, x: Operand, y: Operand, columns: tuple[int, int] | None = None) -> None:
    weight, bias = at.operand(node.inputs[1]), at.operand(node.inputs[2]) if len(node.inputs) > 2 else None
    centered = node.op_type == "LayerNormalization" or LAYER in node.overload.split("_")
    epsilon = attribute(node, "epsilon", 1e-5)
    at.add(node, head_norm(x, weight, y, epsilon=epsilon, bias=bias, centered=centered, columns=columns))


def _whole_norm(at: Lowering, node: ir.Node) -> None:
    x = at.operand(node.inputs[0])
    _norm(at, node, x, at.result(node.outputs[0]))


def _part_norm(at: Lowering, node: ir.Node) -> None:
    """In place: the merged linear has no other reader."""
    (x, *_), (y,) = node.inputs, node.outputs
    assert x is not None and len(x.uses()) == 1
    whole = at.operand(x)
    at.alias(y, whole)
    _norm(at, node, whole, whole, (attribute(node, "start"), attribute(node, "stop")))


def _single(call: Callable[[Lowering, ir.Node, Operand, Operand], KernelCall]) -> Callable[[Lowering, ir.Node], None]:
    """An operator on elements: its result has the type of its first operand, as logits stay float32."""

    def lower(at: Lowering, node: ir.Node) -> None:
        if at.computed(node.outputs[0]):  # fused into the launch before it
            return
        x = at.operand(node.inputs[0])
        at.add(node, call(at, node, x, at.result(node.outputs[0], x.dtype)))

    return lower


def _activation(at: Lowering, node: ir.Node, x: Operand, y: Operand) -> KernelCall:
    return pointwise.activation(x, y, node.overload, tuple(map(at.operand, node.inputs[1:])))


def _multiply(at: Lowering, node: ir.Node) -> None:
    """A value times a stored number, or times the opening of its gate."""
    if experts.gated_by_sigmoid(node.outputs[0]) is not None:
        experts.multiply_by_gate(at, node)
        return
    x, scalar = sorted(node.inputs, key=lambda value: at.profile.graph.expr(value) is not None)
    at.add(node, pointwise.multiply(at.operand(x), at.operand(scalar), at.result(node.outputs[0])))


def _slice(at: Lowering, node: ir.Node) -> None:
    """Columns of a value, which are copied."""
    first = node.inputs[1].producer() if node.inputs[1] is not None else None
    assert first is not None
    (start,) = attribute(first, "value_ints")
    at.add(node, columns.add(None, at.operand(node.inputs[0]), at.result(node.outputs[0]), start=start))


LOWER: Mapping[str, Callable[[Lowering, ir.Node], None]] = {
    "LayerNormalization": _whole_norm,
    "HeadNorm": _whole_norm,
    "PartNorm": _part_norm,
    "Scale": _single(lambda _, node, x, y: pointwise.scale(x, y, attribute(node, "factor"))),
    "Softcap": _single(lambda _, node, x, y: pointwise.softcap(x, y, attribute(node, "cap"))),
    "Activation": _single(_activation),
    "Mul": _multiply,
    "Slice": _slice,
}
