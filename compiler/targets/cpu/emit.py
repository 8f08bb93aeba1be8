"""Writes a legal graph as ONNX bytes; loading binds weights: as initializers if kernels pack them, else as inputs."""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence

import onnx
import onnx_ir as ir

from ....passes.graph.graph import Graph, attribute, dims
from ....passes.graph.ops import is_collective
from ....runtime.costs.nodes import CpuGraph, GraphNode, nodes_of, read_bytes
from ....runtime.engine_file.bind import WEIGHTS_LOCATION
from ....runtime.progress import Progress
from ..target import CompiledProfile, ProfileConfig
from .segments import PROGRAM, segments

_PACKS = ("MatMulNBits", "QMoE")
"""Operators that pack their weights when a session is made."""
EXACT, INT8_ACTIVATIONS = 1e-3, 1e-1
"""Tolerances of the probe. Measured: 5e-6 if all products are float32; up to 4e-2 (16 layers, random weights) if
MatMulNBits rounds activations to int8."""


def emit(graph: Graph, config: ProfileConfig, progress: Progress) -> CompiledProfile:
    """An ONNX model, the expression of every weight, and the requirements on the machine.

    The bytes depend only on the graph: serialization is deterministic, and node labels are removed.
    """
    constant = _constant(graph)
    whole = ir.to_proto(graph.model)
    protos = dict(zip(graph.nodes, list(whole.graph.node), strict=True))
    empty = onnx.ModelProto()
    empty.CopyFrom(whole)
    for part in ("node", "input", "output", "value_info", "initializer"):
        empty.graph.ClearField(part)

    def model(nodes: Sequence[ir.Node], inputs: Sequence[ir.Value], outputs: Sequence[ir.Value]) -> bytes:
        return _model(empty, [protos[node] for node in nodes], inputs, outputs, constant)

    if any(map(is_collective, graph.nodes)):
        main, sections = PROGRAM, segments(graph, model, constant)
    else:
        main, sections = "graph.onnx", {"graph.onnx": model(list(graph.nodes), graph.body.inputs, graph.body.outputs)}
    packed = sum(map(_packed_bytes, graph.nodes))
    as_inputs = [name for name in graph.weights if name not in constant]
    needs = {"packed_bytes": packed, "step_bytes": _step_bytes(graph), "weights_as_inputs": as_inputs}
    return CompiledProfile(sections, main, graph.bound(), needs, INT8_ACTIVATIONS if packed else EXACT)


def _model(
    empty: onnx.ModelProto,
    nodes: Sequence[onnx.NodeProto],
    inputs: Sequence[ir.Value],
    outputs: Sequence[ir.Value],
    constant: Collection[str],
) -> bytes:
    """The empty model with nodes, without their labels; constant weights among the inputs become initializers."""
    proto = onnx.ModelProto()
    proto.CopyFrom(empty)
    body = proto.graph
    for node in nodes:
        body.node.add().CopyFrom(node)
        body.node[-1].ClearField("metadata_props")
    for value in inputs:
        if value.name in constant:
            body.initializer.append(_external(ir.to_proto(value)))
        else:
            body.input.append(ir.to_proto(value))
    body.output.extend(map(ir.to_proto, outputs))
    opsets = {node.domain for node in nodes}
    kept = [entry for entry in proto.opset_import if entry.domain in opsets | {""}]
    del proto.opset_import[:]
    proto.opset_import.extend(kept)
    return proto.SerializeToString(deterministic=True)


def _step_bytes(graph: Graph) -> int:
    """Bytes of weights that a decode step of one sequence reads: of experts, those that its token chooses."""
    shapes = {
        str(one.name): tuple(size if isinstance(size, int) else "" for size in dims(one)) for one in graph.body.inputs
    }
    return read_bytes(nodes_of(CpuGraph(tuple(map(_node, graph.nodes)), shapes)), tokens=1)


def _node(node: ir.Node) -> GraphNode:
    kinds = (ir.AttributeType.INT, ir.AttributeType.INTS)
    values = {name: one.value for name, one in node.attributes.items() if one.type in kinds}
    numbers = {name: (value,) if isinstance(value, int) else value for name, value in values.items()}
    names = ["" if one is None else str(one.name) for one in node.inputs]
    return GraphNode(node.domain, node.op_type, names, [str(one.name) for one in node.outputs], numbers)


def _constant(graph: Graph) -> set[str]:
    """Names of the weights that are initializers: those packed by MatMulNBits, and 0- and 1-D ones, for fusions.

    ONNX Runtime copies initializers. The other weights are inputs, which it reads in place, from the mapped file or
    from the one converted copy.
    """
    packed = {value.name for node in graph.nodes if node.op_type in _PACKS for value in node.inputs[1:] if value}
    return {name for name, expr in graph.weights.items() if name in packed or len(expr.shape) < 2}


def _packed_bytes(node: ir.Node) -> int:
    """Bytes of the copy that MatMulNBits packs at load: codes, and per block a scale and a sum in float32."""
    if node.op_type == "QMoE":
        stacks = ((node.inputs[2], node.inputs[3]), (node.inputs[5], node.inputs[6]))
        return sum(_numbers(codes) + 8 * _numbers(scales) for codes, scales in stacks)
    if node.op_type != "MatMulNBits":
        return 0
    rows, columns, bits, block = (attribute(node, key) for key in ("N", "K", "bits", "block_size"))
    return rows * columns * bits // 8 + rows * (columns // block) * 8


def _numbers(value: ir.Value | None) -> int:
    return math.prod(map(int, dims(value)))


def _external(value: onnx.ValueInfoProto) -> onnx.TensorProto:
    kind = value.type.tensor_type
    tensor = onnx.TensorProto(name=value.name, data_type=kind.elem_type)
    tensor.dims.extend(dim.dim_value for dim in kind.shape.dim)
    tensor.data_location = onnx.TensorProto.EXTERNAL
    tensor.external_data.add(key="location", value=WEIGHTS_LOCATION)
    return tensor
