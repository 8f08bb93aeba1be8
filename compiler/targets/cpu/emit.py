"""A legal graph as ONNX bytes; weights are bound at load, as initializers where kernels pack them, else as inputs."""

from __future__ import annotations

import math

import onnx
import onnx_ir as ir

from ....passes.graph.graph import Graph, attribute, dims
from ....runtime.engine_file.bind import WEIGHTS_LOCATION
from ....runtime.progress import Progress
from ..target import CompiledProfile, ProfileConfig

EXACT, INT8_ACTIVATIONS = 1e-3, 1e-1
"""Tolerances of the probe. Measured: 5e-6 where all products are float32; up to 4e-2 (16 layers, random weights) where
MatMulNBits rounds activations to int8."""


def emit(graph: Graph, config: ProfileConfig, progress: Progress) -> CompiledProfile:
    """An ONNX model, the binding of every weight, and what a machine needs.

    The bytes depend on the graph alone: serialization is deterministic and nodes keep no labels.
    """
    proto = ir.to_proto(graph.model)
    body = proto.graph
    constant = _constant(graph)
    inputs = [value for value in body.input if value.name not in constant]
    weights = [value for value in body.input if value.name in constant]
    del body.input[:]
    body.input.extend(inputs)
    for value in weights:
        body.initializer.append(_external(value))
    for node in body.node:
        node.ClearField("metadata_props")
    del body.value_info[:]
    opsets = {node.domain for node in body.node}
    kept = [entry for entry in proto.opset_import if entry.domain in opsets | {""}]
    del proto.opset_import[:]
    proto.opset_import.extend(kept)
    sections = {"graph.onnx": proto.SerializeToString(deterministic=True)}
    packed = sum(map(_packed_bytes, graph.nodes))
    dense = sum(4 * math.prod(map(int, dims(node.inputs[1]))) for node in graph.nodes if node.op_type == "FusedMatMul")
    as_inputs = [name for name in graph.weights if name not in constant]
    needs = {"packed_bytes": packed, "step_bytes": packed + dense, "weights_as_inputs": as_inputs}
    return CompiledProfile(sections, "graph.onnx", graph.bound(), needs, INT8_ACTIVATIONS if packed else EXACT)


def _constant(graph: Graph) -> set[str]:
    """The weights a session must know when it is made: those MatMulNBits packs, and small ones, which fusions look at.

    ONNX Runtime copies initializers; all others are inputs, which it reads where they lie, in the mapped file or in the
    one converted copy.
    """
    packed = {value.name for node in graph.nodes if node.op_type == "MatMulNBits" for value in node.inputs[1:] if value}
    return {name for name, expr in graph.weights.items() if name in packed or len(expr.shape) < 2}


def _packed_bytes(node: ir.Node) -> int:
    """MatMulNBits packs its weights anew at load: codes, and per block a scale and a sum in float32."""
    if node.op_type != "MatMulNBits":
        return 0
    rows, columns, bits, block = (attribute(node, key) for key in ("N", "K", "bits", "block_size"))
    return rows * columns * bits // 8 + rows * (columns // block) * 8


def _external(value: onnx.ValueInfoProto) -> onnx.TensorProto:
    kind = value.type.tensor_type
    tensor = onnx.TensorProto(name=value.name, data_type=kind.elem_type)
    tensor.dims.extend(dim.dim_value for dim in kind.shape.dim)
    tensor.data_location = onnx.TensorProto.EXTERNAL
    tensor.external_data.add(key="location", value=WEIGHTS_LOCATION)
    return tensor
