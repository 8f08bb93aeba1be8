"""Reads the nodes of a cpu profile from the ONNX bytes that an engine stores, without the onnx package."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from ..cpu import onnx_scan as onnx
from ..errors import EngineError
from .nodes import CpuGraph, GraphNode, Node, nodes_of

_INT, _INTS = 3, 8
"""Fields of an attribute that hold whole numbers."""


def nodes_of_model(data: bytes, *, what: str) -> tuple[Node, ...]:
    """What each node of a serialized ModelProto, called `what` in errors, computes.

    Raises:
        EngineError: it is damaged, or no graph that this llmc writes.
    """
    try:
        return nodes_of(read_graph(data, what=what))
    except (KeyError, IndexError, ValueError, StopIteration) as error:
        raise EngineError(f"expected a graph that this llmc can price in {what}", found=repr(error)[:200]) from error


def read_graph(data: bytes, *, what: str) -> CpuGraph:
    """The nodes, and the shapes of inputs and weights.

    Raises:
        EngineError: it is damaged or has unknown fields.
    """
    walk = onnx.Walk(what, None, frozenset())
    nodes: list[GraphNode] = []
    shapes: dict[str, tuple[int | str, ...]] = {}
    for graph in walk.read(onnx.MODEL, memoryview(data))[7]:
        fields = walk.read(onnx.GRAPH, graph)
        nodes += [_node(walk, node) for node in fields[1]]
        for value in fields[11]:
            entry = walk.read(onnx.VALUE, value)
            shapes[walk.text(entry[1])] = _shape(walk, entry[2])
        for tensor in fields[5]:
            entry = walk.read(onnx.TENSOR, tensor)
            shapes[walk.text(entry[8])] = tuple(_numbers(walk, entry[1]))
    return CpuGraph(tuple(nodes), shapes)


def _node(walk: onnx.Walk, data: memoryview) -> GraphNode:
    fields = walk.read(onnx.NODE, data)
    inputs, outputs = ([walk.text([one]) for one in fields[number]] for number in (1, 2))
    name, domain = walk.text(fields[4]), walk.text(fields[7])
    return GraphNode(domain, name, inputs, outputs, dict(map(lambda one: _attribute(walk, one), fields[5])))


def _attribute(walk: onnx.Walk, data: memoryview) -> tuple[str, Sequence[int]]:
    fields: Mapping[int, list[memoryview]] = walk.read(onnx.ATTRIBUTE, data)
    return walk.text(fields[1]), tuple(_numbers(walk, fields[_INT] or fields[_INTS]))


def _shape(walk: onnx.Walk, kinds: Sequence[memoryview]) -> tuple[int | str, ...]:
    """The dimensions of a value's type: numbers, or names of sizes."""
    dims: list[int | str] = []
    for kind in kinds:
        for tensor in walk.read(onnx.TYPE, kind)[1]:
            for shape in walk.read(onnx.TENSOR_TYPE, tensor)[2]:
                for dim in walk.read(onnx.SHAPE, shape)[1]:
                    entry = walk.read(onnx.DIM, dim)
                    dims += _numbers(walk, entry[1]) or [walk.text(entry[2])]
    return tuple(dims)


def _numbers(walk: onnx.Walk, fields: Sequence[memoryview]) -> list[int]:
    """Whole numbers of a field, which may be packed; in two's complement of 64 bits."""
    found = []
    for data in fields:
        at = 0
        while at < len(data):
            value, at = walk.varint(data, at)
            found.append(value - (1 << 64) if value >> 63 else value)
    return found
