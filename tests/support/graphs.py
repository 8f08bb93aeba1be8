"""Graphs from ONNX text for tests: inputs with a capital first letter become weights with random numbers."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime as ort
import torch

from llmc.passes.graph import ops
from llmc.passes.graph.experts import Mixture
from llmc.passes.graph.graph import BLOCK, IR_VERSION, OPSETS, Canonical, Copied, Graph, Quantized, dims
from llmc.passes.graph.types import infer
from llmc.quantize import FORMATS
from llmc.runtime.engine_file.bind import Stored, evaluate_weight


@dataclass
class Example:
    """A graph, the raw arrays of its canonical tensors, and values for its run-time inputs."""

    graph: Graph
    tensors: dict[str, np.ndarray]
    inputs: dict[str, np.ndarray]


def parse(text: str, seed: int = 0) -> Example:
    """A typed graph with one block, from ONNX text without the leading name."""
    rng = np.random.default_rng(seed)
    proto = onnx.parser.parse_graph(f"example {text}")
    keys = dict.fromkeys((n.op_type, n.overload) for n in proto.node if n.domain == ops.DOMAIN)
    opsets = [onnx.helper.make_opsetid(*pair) for pair in OPSETS.items()]
    functions = [ops.function(*key) for key in keys]
    model = onnx.helper.make_model(proto, functions=functions, opset_imports=opsets, ir_version=IR_VERSION)
    model = onnx.shape_inference.infer_shapes(model, strict_mode=True)
    del model.functions[:]
    graph = Graph(ir.from_proto(model))
    for node in graph.nodes:
        node.metadata_props[BLOCK] = "layer.0"
        if node.op_type == "Route":  # ONNX infers no shape through its definition
            infer(node)
    tensors: dict[str, np.ndarray] = {}
    quantized = _quantized_inputs(graph, rng, tensors)
    inputs = {}
    for value in graph.body.inputs:
        name, shape = str(value.name), tuple(int(d) for d in dims(value))
        if name in quantized:
            graph.weights[name] = _store(graph, quantized[name])
        elif name[0].isupper():
            tensors[name] = rng.normal(size=shape).astype(np.float32)
            graph.weights[name] = _store(graph, Stored(name, "F32", shape))
        else:
            inputs[name] = _numbers(value, name, shape, rng)
    return Example(graph, tensors, inputs)


def _store(graph: Graph, leaf: Stored) -> Stored:
    return graph.store(Canonical(leaf.name, leaf.dtype, leaf.shape, Copied(leaf.name), group=leaf.name))


def _quantized_inputs(graph: Graph, rng: np.random.Generator, tensors: dict[str, np.ndarray]) -> dict[str, Stored]:
    """Codes and scales of one random weight for each quantized linear or embedding."""
    found: dict[str, Stored] = {}
    for node in graph.nodes:
        if (node.domain, node.op_type) == (ops.DOMAIN, "MoE"):
            found |= _stacks(node, rng, tensors)
        if node.domain != ops.DOMAIN or node.op_type not in ("Linear", "Embedding") or ops.format_of(node) == ops.DENSE:
            continue
        fmt = FORMATS[ops.format_of(node)]
        rows, stored = (int(d) for d in dims(node.inputs[1]))
        columns = stored * 128 // fmt.components(128, 128)[0].shape[1]
        parts = fmt.quantize(torch.from_numpy(rng.normal(size=(rows, columns)).astype(np.float32)))
        for component, value in zip(fmt.components(rows, columns), node.inputs[1:], strict=False):
            assert value is not None
            name = str(value.name)
            tensors[name] = np.asarray(parts[component.name]).reshape(component.shape)
            found[name] = Stored(name, component.dtype, component.shape)
    return found


def _stacks(node: ir.Node, rng: np.random.Generator, tensors: dict[str, np.ndarray]) -> dict[str, Stored]:
    """The same of the experts' weights of a mixture."""
    mixture, values = Mixture.of(node.overload), iter(node.inputs[3:])
    found: dict[str, Stored] = {}
    for name, suffixes in zip((mixture.up, mixture.down), mixture.weights(), strict=True):
        own = {suffix: next(values) for suffix in suffixes}
        if name == "none":
            continue
        fmt, (experts, rows, stored) = FORMATS[name], (int(d) for d in dims(own["weight"]))
        columns = stored * fmt.layouts[0].step
        made = [
            fmt.quantize(torch.from_numpy(rng.normal(size=(rows, columns)).astype(np.float32))) for _ in range(experts)
        ]
        for part in fmt.components(rows, columns):
            value = own[part.name]
            assert value is not None
            tensors[str(value.name)] = np.stack([np.asarray(one[part.name]) for one in made])
            found[str(value.name)] = Stored(str(value.name), part.dtype, (experts, *part.shape))
    return found


def _numbers(value: ir.Value, name: str, shape: tuple[int, ...], rng: np.random.Generator) -> np.ndarray:
    if value.dtype == ir.DataType.INT32:
        return np.arange(1, shape[0] + 1, dtype=np.int32)
    if value.dtype == ir.DataType.INT64:
        return rng.integers(0, 3, shape)
    return rng.normal(size=shape).astype(np.float32)


def run(graph: Graph, tensors: Mapping[str, np.ndarray], inputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """All outputs by stock ONNX Runtime, weights as constants; operators of llmc run as their function bodies."""
    model = graph.to_proto()
    stored = {**tensors, **quantized(graph, tensors)}
    model.graph.value_info.extend(value for value in model.graph.input if value.name in graph.weights)
    for name, expr in graph.bound().items():
        array = np.ascontiguousarray(evaluate_weight(expr, stored.__getitem__, initializer=name))
        model.graph.initializer.append(onnx.numpy_helper.from_array(array, name))
    kept = [value for value in model.graph.input if value.name not in graph.weights]
    del model.graph.input[:]
    model.graph.input.extend(kept)
    options = ort.SessionOptions()
    options.log_severity_level = 3
    session = ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    cached = {name: inputs["past"] for value in kept if (name := str(value.name)).startswith("window_lengths.")}
    again = {  # the second name of rows that are keys and values
        name: inputs[f"{stem}key"]
        for value in kept
        if (name := str(value.name)) not in inputs
        if (stem := name.removesuffix("value")) != name and f"{stem}key" in inputs
    }
    cached |= again
    names = [name for value in graph.body.outputs if (name := str(value.name)).removeprefix("present.") not in again]
    results = session.run(names, {**inputs, **cached})
    return {name: np.asarray(result) for name, result in zip(names, results, strict=True)}


def run_operator(
    op: str, overload: str, inputs: Mapping[str, np.ndarray], outputs: list[str], **attributes: Any
) -> list[np.ndarray]:
    """The results of one operator's definition in ONNX Runtime."""
    helper = onnx.helper
    node = helper.make_node(op, list(inputs), outputs, domain=ops.DOMAIN, **attributes)
    node.overload = overload
    values = [
        helper.make_tensor_value_info(name, helper.np_dtype_to_tensor_dtype(array.dtype), array.shape)
        for name, array in inputs.items()
    ]
    graph = helper.make_graph([node], "g", values, [onnx.ValueInfoProto(name=name) for name in outputs])
    opsets = [helper.make_opsetid("", 24), helper.make_opsetid(ops.DOMAIN, 1)]
    functions = [ops.function(op, overload)]
    model = helper.make_model(graph, functions=functions, opset_imports=opsets, ir_version=IR_VERSION)
    options = ort.SessionOptions()
    options.log_severity_level = 3
    results = ort.InferenceSession(model.SerializeToString(), options).run(None, dict(inputs))
    return [np.asarray(result) for result in results]


def quantized(graph: Graph, tensors: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The components, not there yet, that the graph's formats make of dense tensors; all share the global scale."""
    amax = max((float(np.abs(array).max()) for array in tensors.values() if array.dtype == np.float32), default=0.0)
    made: dict[str, np.ndarray] = {}
    for canonical in graph.canonical.values():
        if isinstance(origin := canonical.origin, Quantized) and canonical.name not in tensors:
            whole, fmt = torch.from_numpy(tensors[origin.tensor]), FORMATS[origin.format]
            parts = [
                fmt.quantize(one, amax if whole.ndim == 2 else None) for one in whole.reshape(-1, *whole.shape[-2:])
            ]
            made[canonical.name] = np.stack([np.asarray(one[origin.suffix]) for one in parts]).reshape(canonical.shape)
    return made


def difference(found: np.ndarray, expected: np.ndarray) -> float:
    """max|a-b| / max|b|."""
    assert found.shape == expected.shape
    return float(np.abs(found - expected).max() / max(np.abs(expected).max(), 1e-30))
