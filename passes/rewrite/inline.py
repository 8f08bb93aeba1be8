"""Replaces an operator of ours by the nodes of its definition, for targets that have a kernel for each of them."""

from __future__ import annotations

from typing import Any

import onnx
import onnx_ir as ir

from ..graph import ops
from ..graph.graph import Builder


def inlined(b: Builder, node: ir.Node) -> list[ir.Value]:
    """The results of the nodes that define `node`, in the order of its outputs; the definition has no subgraphs."""
    function = ops.function(node.op_type, node.overload)
    values: dict[str, ir.Value | None] = dict(zip(function.input, node.inputs, strict=False))
    values[""] = None
    for proto in function.node:
        attributes: dict[str, Any] = {one.name: _value(one, node) for one in proto.attribute}
        made = b(
            proto.op_type,
            *(values[name] for name in proto.input),
            domain=proto.domain,
            outputs=len(proto.output),
            **attributes,
        )
        values.update(zip(proto.output, made if isinstance(made, tuple) else (made,), strict=True))
    return [value for name in function.output if (value := values[name]) is not None]


def _value(attribute: onnx.AttributeProto, node: ir.Node) -> Any:
    if attribute.ref_attr_name:
        return node.attributes[attribute.ref_attr_name].value
    made = ir.from_proto(attribute)
    return made.value
