"""Gives the linears of a legal graph other weight formats, so that passes run once for all formats of a split.

Passes and legalization look at whether a linear is quantized, and whether linears that read one input have one format;
which format it is decides the stored tensors alone. (4-bit activations are for weights in their own format: graphs with
them are lowered by themselves.)
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from dataclasses import dataclass, replace
from functools import partial

import onnx_ir as ir

from ...passes.graph import ops
from ...passes.graph.graph import BLOCK, Graph, dims, width
from ...passes.rewrite.rule import replace_value
from ...quantize import FORMATS
from ..families.spec import DecoderSpec
from .skeleton import Skeleton, matrices

BASE = "fp8"
"""The format of all quantized weights of a graph that others are made of: it has no blocks, so any cut is legal."""
_QUANTIZED = ("Linear", "Embedding")
"""The operators with weights that may be quantized."""


def structure(skeleton: Skeleton) -> Hashable | None:
    """What legal graphs of a skeleton depend on beside its records: which modules are quantized.

    None if linears of a layer have several formats: then their merging depends on which. None with experts too, whose
    operators have their formats in them.
    """
    if skeleton.short.stacks():
        return None
    formats = {module: skeleton.short_format(module) for module in skeleton.short.linears()}
    for index, layer in enumerate(skeleton.short.layers):
        prefix = skeleton.short.layer.format(index)
        if len({formats[prefix + module] for module in matrices(layer)} - {"none"}) > 1:
            return None
    return skeleton.layers, tuple(name != "none" for name in formats.values())


def on_base(skeleton: Skeleton) -> Skeleton:
    """A skeleton with BASE as the format of all that is quantized."""
    return replace(skeleton, format_of=partial(_base_of, skeleton))


def _base_of(skeleton: Skeleton, module: str) -> str:
    return BASE if skeleton.format_of(module) != "none" else "none"


@dataclass
class _Linear:
    """A node with a quantized weight, as it is now."""

    node: ir.Node
    weight: str
    """Its name in the base graph."""
    rows: int
    columns: int


class Reformatted:
    """A legal graph, whose quantized weights are all in BASE at first, that takes on one format after the other."""

    def __init__(self, graph: Graph) -> None:
        """`graph` is changed from now on."""
        self._graph = graph
        quantized = [one for one in graph.nodes if one.op_type in _QUANTIZED and ops.format_of(one) == BASE]
        self._linears = [_linear(node) for node in quantized]

    def to(self, skeleton: Skeleton) -> Graph:
        """The graph with the formats of a skeleton; it is the same object each time."""
        graph, known, removed = self._graph, dict[str, list[ir.Value]](), set[ir.Value]()
        for linear in self._linears:
            node, weight = linear.node, linear.weight
            fmt = skeleton.short_format(_module(weight, skeleton.short))
            if ops.format_of(node) == fmt:
                continue
            if weight not in known:
                parts = FORMATS[fmt].components(linear.rows, linear.columns)
                known[weight] = [graph.weight(f"{weight}:{fmt}.{one.name}", one) for one in parts]
            biases = node.inputs[-1:] if ops.has_bias(node) else ()
            part = ops.PART if node.overload.endswith(ops.PART) else ""
            b = graph.build(node.metadata_props[BLOCK], before=node)
            attributes: Mapping[str, object] = {key: one.value for key, one in node.attributes.items()}
            overload = ops.overload_of(fmt, bias=bool(biases)) + part
            new = b.llmc(node.op_type, node.inputs[0], *known[weight], *biases, overload=overload, **attributes)
            replace_value(node.outputs[0], new)
            removed |= {value for value in node.inputs[1:] if value is not None and value not in biases}
            graph.body.remove(node, safe=True)
            made = new.producer()
            assert made is not None
            linear.node = made
        for value in removed:
            if not value.uses():
                graph.body.inputs.remove(value)
                del graph.weights[str(value.name)]
        return graph


def _linear(node: ir.Node) -> _Linear:
    weight, (rows, *_) = str(node.inputs[1].name) if node.inputs[1] is not None else "", dims(node.inputs[1])
    assert isinstance(rows, int)
    columns = width(node.inputs[0]) if node.op_type == "Linear" else width(node.outputs[0])
    return _Linear(node, weight, rows, columns)


def _module(weight: str, spec: DecoderSpec) -> str:
    """The module of a weight's name, of a merged one the first; a tied embedding has the head's format."""
    module = weight.partition("+")[0].removesuffix(f".{BASE}").removesuffix(".weight")
    return spec.head if module == spec.embedding else module
