"""Gives the linears of a legal graph other weight formats, so that passes run once for all formats of a split.

Passes and legalization look at whether a linear is quantized, and whether linears that read one input have one format;
which format it is decides the stored tensors alone.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping

import onnx_ir as ir

from ...passes.graph import ops
from ...passes.graph.graph import BLOCK, Graph, dims, width
from ...passes.rewrite.rule import replace_value
from ...quantize import FORMATS
from ..families.spec import DecoderSpec
from .skeleton import Skeleton, matrices

BASE = "fp8"
"""The format of all quantized weights of a graph that others are made of: it has no blocks, so any cut is legal."""


def structure(skeleton: Skeleton) -> Hashable | None:
    """What legal graphs of a skeleton depend on beside its records: which modules are quantized.

    None if linears of a layer have several formats: then their merging depends on which.
    """
    formats = {module: skeleton.short_format(module) for module in skeleton.short.linears()}
    for index, layer in enumerate(skeleton.short.layers):
        prefix = skeleton.short.layer.format(index)
        if len({formats[prefix + module] for module in matrices(layer)} - {"none"}) > 1:
            return None
    return skeleton.layers, tuple(name != "none" for name in formats.values())


def reformat(graph: Graph, skeleton: Skeleton) -> Graph:
    """A copy of a legal graph, whose quantized weights are all in BASE, with the formats of the skeleton."""
    made = graph.copy()
    known: dict[str, list[ir.Value]] = {}
    for node in [
        node for node in made.nodes if node.op_type in ("Linear", "Embedding") and ops.format_of(node) == BASE
    ]:
        name = str(node.inputs[1].name) if node.inputs[1] is not None else ""
        fmt = FORMATS[skeleton.short_format(_module(name, skeleton.short))]
        if name not in known:
            known[name] = _weights(made, node, name, fmt.name)
        biases = node.inputs[-1:] if ops.has_bias(node) else ()
        part = ops.PART if node.overload.endswith(ops.PART) else ""
        b = made.build(node.metadata_props[BLOCK], before=node)
        attributes: Mapping[str, object] = {key: one.value for key, one in node.attributes.items()}
        overload = ops.overload_of(fmt.name, bias=bool(biases)) + part
        new = b.llmc(node.op_type, node.inputs[0], *known[name], *biases, overload=overload, **attributes)
        replace_value(node.outputs[0], new)
        made.body.remove(node, safe=True)
    return made


def _module(weight: str, spec: DecoderSpec) -> str:
    """The module of a weight's name, of a merged one the first; a tied embedding has the head's format."""
    module = weight.partition("+")[0].removesuffix(f".{BASE}").removesuffix(".weight")
    return spec.head if module == spec.embedding else module


def _weights(graph: Graph, node: ir.Node, name: str, fmt: str) -> list[ir.Value]:
    """The stored tensors of a node's weight in a format."""
    rows = dims(node.inputs[1])[0]
    assert isinstance(rows, int)
    columns = width(node.inputs[0]) if node.op_type == "Linear" else width(node.outputs[0])
    found = FORMATS[fmt].components(rows, columns)
    return [graph.weight(f"{name}:{one.name}", one) for one in found]
