"""The oracle: runs any graph at any stage in fp32 on ONNX Runtime's CPU kernels, block by block, in little memory.

A block holds the nodes with one label (embedding, one layer, head). Each block becomes a small ONNX model whose weights
are inputs, so equal layers share one session and only one layer's weights are in memory at a time.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import torch

from ...passes.graph import ops
from ...passes.graph.graph import BLOCK, IR_VERSION, OPSETS, Graph
from ...quantize import FORMATS
from ...quantize.chunks import on_all_cores
from ...runtime.engine_file.bind import Expr, Stored, evaluate_weight
from ...runtime.numbers import to_f32
from .experts import mixture_result, of_expert

Read = Callable[[str, int, int], np.ndarray]
"""(canonical name, first row, row after the last; -1: to the end) to a raw array."""
LARGE = 1 << 20
"""Weights with more elements are dequantized and multiplied by chunks of rows, never as a whole."""


@dataclass(frozen=True, eq=False)
class _Feed:
    """An input of a block."""

    array: np.ndarray
    kind: int
    """ONNX type."""
    shape: tuple[int | None, ...]
    """The shape of a weight; all None for values, whose shapes change from run to run."""

    @classmethod
    def value(cls, array: np.ndarray) -> _Feed:
        return cls(array, onnx.helper.np_dtype_to_tensor_dtype(array.dtype), (None,) * array.ndim)

    @classmethod
    def weight(cls, array: np.ndarray, dtype: str = "F32") -> _Feed:
        """A weight; numpy holds raw bf16 as uint16, ONNX must be told the type."""
        plain = onnx.helper.np_dtype_to_tensor_dtype(array.dtype)
        return cls(np.asarray(array, order="C"), onnx.TensorProto.BFLOAT16 if dtype == "BF16" else plain, array.shape)


class Oracle:
    """Runs graphs over canonical tensors.

    `read` returns raw rows of a canonical tensor (`runtime/engine_file/bind.py`), which are dropped after each block.
    `threads` is the number of intra-op threads, 0 for the default.
    """

    def __init__(self, read: Read, threads: int = 0) -> None:
        self._read = read
        self._threads = threads
        self._sessions: dict[bytes, Any] = {}
        self._bound: Mapping[str, Expr] = {}
        """Weight expressions of the running graph."""

    def run(
        self, graph: Graph, inputs: Mapping[str, np.ndarray], advance: Callable[[int], None] = lambda _: None
    ) -> dict[str, np.ndarray]:
        """All graph outputs by name. Quantized linears are dequantized by their format, then multiplied densely.

        `advance` receives 1 after each of the blocks, of which there are `block_count`.
        """
        values: dict[str, np.ndarray] = dict(inputs)
        self._bound = graph.bound()
        outputs = [str(value.name) for value in graph.body.outputs]
        blocks = _blocks(graph)
        reads = [{str(v.name) for node in nodes for v in node.inputs if v is not None} for nodes in blocks]
        for index, nodes in enumerate(blocks):
            needed_later = set(outputs).union(*reads[index + 1 :])
            self._block(graph, nodes, values, needed_later)
            values = {name: value for name, value in values.items() if name in needed_later}
            advance(1)
        return {name: values[name] for name in outputs}

    def _block(self, graph: Graph, nodes: list[ir.Node], values: dict[str, np.ndarray], needed_later: set[str]) -> None:
        pending: list[ir.Node] = []
        for position, node in enumerate(nodes):
            mixture = (node.domain, node.op_type) == (ops.DOMAIN, "MoE")
            if not mixture and not _is_large(graph, node):
                pending.append(node)
                continue
            later = {str(v.name) for other in nodes[position:] for v in other.inputs if v is not None}
            self._run_nodes(graph, pending, values, needed_later | later)
            pending = []
            found = self._mixture(graph, node, values) if mixture else self._large(graph, node, values)
            values[str(node.outputs[0].name)] = found
        self._run_nodes(graph, pending, values, needed_later)

    def _run_nodes(self, graph: Graph, nodes: list[ir.Node], values: dict[str, np.ndarray], wanted: set[str]) -> None:
        if not nodes:
            return
        made = {str(v.name) for node in nodes for v in node.outputs}
        results = [name for node in nodes for v in node.outputs if (name := str(v.name)) in wanted]
        feeds: dict[str, _Feed] = {}
        protos = []
        for node in nodes:
            proto = ir.to_proto(node)
            if (node.domain, node.op_type) == (ops.DOMAIN, "Linear"):
                self._dense_linear(graph, node, proto, feeds)
            protos.append(proto)
        for name in dict.fromkeys(name for proto in protos for name in proto.input if name):
            if name not in made and name not in feeds:
                feeds[name] = _Feed.value(values[name]) if name in values else self._weight(name)
        values.update(zip(results, self._compute(protos, feeds, results), strict=True))

    def _dense_linear(self, graph: Graph, node: ir.Node, proto: onnx.NodeProto, feeds: dict[str, _Feed]) -> None:
        """Dequantize a weight by its format, not by the function body: the same numbers, many times faster."""
        fmt = ops.format_of(node)
        if fmt == ops.DENSE:
            return
        suffixes = ops.weight_suffixes(fmt)
        values = node.inputs[1 : 1 + len(suffixes)]
        name = f"{values[0].name}.dense"  # type: ignore[union-attr]
        feeds[name] = _Feed.weight(self._decode(graph, fmt, values))
        rest = [str(v.name) for v in node.inputs[1 + len(suffixes) :] if v is not None]
        del proto.input[1:]
        proto.input.extend([name, *rest])
        proto.overload = ops.overload_of(ops.DENSE, bias=ops.has_bias(node))

    def _decode(self, graph: Graph, fmt: str, values: Sequence[ir.Value | None]) -> np.ndarray:
        suffixes = ops.weight_suffixes(fmt)
        return FORMATS[fmt].dequantize({s: self._raw(graph, v) for s, v in zip(suffixes, values, strict=True)})

    def _raw(self, graph: Graph, value: ir.Value | None) -> np.ndarray:
        """The stored component behind a function input, in raw representation, as formats expect it."""
        expr = graph.expr(value)
        assert expr is not None and value is not None
        return evaluate_weight(expr, self._whole, initializer=str(value.name))

    def _whole(self, name: str) -> np.ndarray:
        return self._read(name, 0, -1)

    def _weight(self, name: str) -> _Feed:
        expr = self._bound[name]
        return _Feed.weight(evaluate_weight(expr, self._whole, initializer=name), expr.dtype)

    def _large(self, graph: Graph, node: ir.Node, values: dict[str, np.ndarray]) -> np.ndarray:
        """The result of a large node: the rows of an embedding, or a linear computed in chunks of its rows."""
        fmt = ops.format_of(node)
        weights = node.inputs[1 : 1 + len(ops.weight_suffixes(fmt))]
        if node.op_type == "Embedding":
            ids = values[str(node.inputs[0].name)]  # type: ignore[union-attr]
            flat, inverse = np.unique(ids, return_inverse=True)
            table = np.concatenate([self._rows(graph, fmt, weights, int(i), int(i) + 1) for i in flat])
            return table[inverse.reshape(-1)].reshape(*ids.shape, -1)
        x = values[str(node.inputs[0].name)]  # type: ignore[union-attr]
        total = int(node.outputs[0].shape[-1])  # type: ignore[index, arg-type]
        y = np.empty((*x.shape[:-1], total), np.float32)
        columns = torch.from_numpy(np.ascontiguousarray(x.reshape(-1, x.shape[-1]).T))
        flat, step = y.reshape(-1, total), max(1, LARGE // x.shape[-1])

        def multiply(start: int) -> None:
            stop = min(start + step, total)
            rows = self._rows(graph, fmt, weights, start, stop)
            flat[:, start:stop] = (torch.from_numpy(rows) @ columns).numpy().T

        on_all_cores(range(0, total, step), multiply)
        if ops.has_bias(node):
            y += self._weight(str(node.inputs[-1].name)).array  # type: ignore[union-attr]
        return y

    def _mixture(self, graph: Graph, node: ir.Node, values: dict[str, np.ndarray]) -> np.ndarray:
        def read(value: ir.Value, expert: int) -> np.ndarray:
            whole = graph.expr(value)
            assert whole is not None
            expr, row = of_expert(whole, expert)
            return expr.evaluate(lambda name: self._read(name, row, row + 1))[0]

        x, experts, weights = (values[str(value.name)] for value in node.inputs[:3])  # type: ignore[union-attr]
        return mixture_result(graph, node, x, experts, weights, read)

    def _rows(self, graph: Graph, fmt: str, weights: Sequence[ir.Value | None], start: int, stop: int) -> np.ndarray:
        """Rows of a large weight, ``f32 [stop - start, N]``; its components are single stored tensors (`_is_large`)."""
        parts = {}
        for suffix, value in zip(ops.weight_suffixes(fmt), weights, strict=True):
            leaf = _leaf(graph, value)
            assert leaf is not None
            parts[suffix] = self._read(leaf.name, start, stop) if leaf.shape else self._whole(leaf.name)
            if fmt == ops.DENSE:
                return to_f32(parts[suffix], leaf.dtype)
        return FORMATS[fmt].dequantize(parts)

    def _compute(
        self, protos: list[onnx.NodeProto], feeds: Mapping[str, _Feed], results: list[str]
    ) -> list[np.ndarray]:
        """Run nodes; replaces names by their order, so that equal blocks share a session."""
        from ...runtime.cpu.ort import onnxruntime as ort

        renamed: dict[str, str] = {}
        for proto in protos:
            for names in (proto.input, proto.output):
                for i, name in enumerate(names):
                    if name:
                        names[i] = renamed.setdefault(name, f"v{len(renamed)}")
            proto.name = ""
            proto.ClearField("metadata_props")
        inputs = {renamed[name]: feed for name, feed in feeds.items()}
        outputs = [renamed[name] for name in results]
        key = hashlib.sha256()
        for proto in protos:
            key.update(proto.SerializeToString(deterministic=True))
        key.update(repr([(name, feed.kind, feed.shape) for name, feed in inputs.items()] + outputs).encode())
        session = self._sessions.get(key.digest())
        if session is None:
            options = ort.SessionOptions()
            options.intra_op_num_threads = self._threads
            options.log_severity_level = (
                4  # only what ends the process: all else is raised, and names are not printed raw
            )
            # other threads use the cores between runs
            options.add_session_config_entry("session.intra_op.allow_spinning", "0")
            session = self._sessions[key.digest()] = ort.InferenceSession(
                _model(protos, inputs, outputs).SerializeToString(), options, providers=["CPUExecutionProvider"]
            )
        bound = {
            name: ort.OrtValue.ortvalue_from_numpy_with_onnx_type(np.asarray(feed.array, order="C"), feed.kind)
            for name, feed in inputs.items()
        }
        return [value.numpy() for value in session.run_with_ort_values(outputs, bound)]


def _model(protos: list[onnx.NodeProto], feeds: Mapping[str, _Feed], results: list[str]) -> onnx.ModelProto:
    helper = onnx.helper
    inputs = [helper.make_tensor_value_info(name, feed.kind, feed.shape) for name, feed in feeds.items()]
    outputs = [onnx.ValueInfoProto(name=name) for name in results]
    graph = helper.make_graph(protos, "block", inputs, outputs)
    opsets = [helper.make_opsetid(*pair) for pair in OPSETS.items()]
    return helper.make_model(graph, functions=ops.functions(protos), opset_imports=opsets, ir_version=IR_VERSION)


def block_count(graph: Graph) -> int:
    """Blocks that `Oracle.run` computes one after the other: the layers, what is before them and what is after."""
    return len(_blocks(graph))


def _blocks(graph: Graph) -> list[list[ir.Node]]:
    """Nodes grouped by block label, in graph order; a node whose input comes from a later label joins that label."""
    order: dict[str, list[ir.Node]] = {}
    placed: dict[ir.Node, int] = {}
    for node in graph.nodes:
        label = node.metadata_props.get(BLOCK, "")
        order.setdefault(label, [])
        labels = list(order)
        producers = (v.producer() for v in node.inputs if v is not None)
        index = max([labels.index(label), *(placed[p] for p in producers if p is not None)])
        placed[node] = index
        order[labels[index]].append(node)
    return list(order.values())


def _is_large(graph: Graph, node: ir.Node) -> bool:
    if node.domain != ops.DOMAIN or node.op_type not in ("Linear", "Embedding"):
        return False
    leaf = _leaf(graph, node.inputs[1])
    return leaf is not None and math.prod(leaf.shape) > LARGE


def _leaf(graph: Graph, value: ir.Value | None) -> Stored | None:
    """The stored tensor behind a weight, if it is one whole tensor."""
    expr = graph.expr(value)
    return expr if isinstance(expr, Stored) else None
