"""Cuts the legal graph of a rank at its collectives: each segment between them is an ONNX model of its own."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Sequence

import onnx_ir as ir

from ....passes.graph.graph import Graph, attribute, dims
from ....passes.graph.ops import is_collective
from ....passes.graph.verify import BrokenGraph
from ....runtime.cpu.program import RUN, Program, Step
from ....runtime.files.records import plain
from ....runtime.files.strict_json import canonical

PROGRAM = "program.json"
_HELPERS = frozenset(
    op
    for ops in ("Constant Shape Cast Add Sub Mul Squeeze", "Unsqueeze Range ReduceMax Less GreaterOrEqual And")
    for op in ops.split()
)
"""Operators that compute positions, lengths and masks. Each segment repeats those that it needs: they take no time, and
so only activations pass from one segment to another."""
Model = Callable[[Sequence[ir.Node], Sequence[ir.Value], Sequence[ir.Value]], bytes]
"""The ONNX model of nodes with these inputs and outputs."""


def segments(graph: Graph, model: Model, constant: Collection[str]) -> dict[str, bytes]:
    """The files of a rank: its program, and the models that it runs, in which the constant weights are initializers.

    Raises:
        BrokenGraph: a value passes between segments whose shape is not known.
    """
    helpers = _helpers(graph)
    values: dict[str, tuple[str, ...]] = {}
    steps: list[Step] = []
    files: dict[str, bytes] = {}
    for nodes in _parts(graph, helpers):
        if is_collective(nodes[0]):
            step = _collective(nodes[0])
            steps.append(step)
            shown = (*step.inputs, *step.outputs)
            passed = [value for value in (*nodes[0].inputs, *nodes[0].outputs) if value and value.name in shown]
        else:
            ordered = _with_helpers(nodes, helpers)
            inside = set(ordered)
            read = dict.fromkeys(value for node in ordered for value in node.inputs if value is not None)
            inputs = [value for value in read if value.producer() not in inside]
            outputs = [value for node in nodes for value in node.outputs if _leaves(value, inside)]
            name = f"segment-{len(files):03d}.onnx"
            files[name] = model(ordered, inputs, outputs)
            weights = _names(value for value in inputs if value.name in constant)
            given, left = (
                [one for one in some if one.producer() is not None and not _is_cache(one)] for some in (inputs, outputs)
            )
            steps.append(Step(RUN, name, weights, _names(given), _names(left)))
            passed = [*given, *left]
        values |= {str(value.name): _shape(value) for value in passed}
    return {PROGRAM: canonical(plain(Program(dict(sorted(values.items())), tuple(steps)))), **files}


def _helpers(graph: Graph) -> set[ir.Node]:
    """Nodes that compute from integer inputs of the graph alone, and from the shapes of caches."""
    found: set[ir.Node] = set()
    for node in graph.nodes:
        shape = node.op_type == "Shape" and node.inputs[0] is not None and str(node.inputs[0].name).startswith("past.")
        helped = shape or all(_is_helped(value, found) for value in node.inputs)
        if node.domain == "" and node.op_type in _HELPERS and helped:
            found.add(node)
    return found


def _is_helped(value: ir.Value | None, helpers: Collection[ir.Node]) -> bool:
    if value is None:
        return True
    producer = value.producer()
    return value.dtype in (ir.DataType.INT64, ir.DataType.INT32) if producer is None else producer in helpers


def _parts(graph: Graph, helpers: Collection[ir.Node]) -> list[list[ir.Node]]:
    """The other nodes in their order, with each collective by itself."""
    parts: list[list[ir.Node]] = []
    for node in graph.nodes:
        if node in helpers:
            continue
        if is_collective(node) or not parts or is_collective(parts[-1][0]):
            parts.append([])
        parts[-1].append(node)
    return parts


def _with_helpers(nodes: Sequence[ir.Node], helpers: Collection[ir.Node]) -> list[ir.Node]:
    """The nodes after the helpers that they need."""
    needed: dict[ir.Node, None] = {}

    def need(value: ir.Value | None) -> None:
        producer = value.producer() if value is not None else None
        if producer is not None and producer in helpers and producer not in needed:
            for one in producer.inputs:
                need(one)
            needed[producer] = None

    for node in nodes:
        for value in node.inputs:
            need(value)
    return [*needed, *nodes]


def _is_cache(value: ir.Value) -> bool:
    """Whether it is a cache with the new tokens, which segments find in the cache's own memory."""
    return str(value.name).startswith("present.")


def _leaves(value: ir.Value, inside: Collection[ir.Node]) -> bool:
    return bool(value.name) and (value.is_graph_output() or any(user not in inside for user, _ in value.uses()))


def _collective(node: ir.Node) -> Step:
    return Step(
        node.op_type,
        inputs=_names(value for value in node.inputs if value is not None),
        outputs=() if node.op_type == "Send" else _names(node.outputs),
        axis=attribute(node, "axis", 0),
        sizes=tuple(attribute(node, "sizes", ())),
        peer=attribute(node, "peer", 0),
    )


def _names(values: Iterable[ir.Value]) -> tuple[str, ...]:
    return tuple(str(value.name) for value in values)


def _shape(value: ir.Value) -> tuple[str, ...]:
    if value.shape is None or value.dtype != ir.DataType.FLOAT:
        raise BrokenGraph(f"a value without the type of activations passes between segments: {value.name}")
    return tuple(map(str, dims(value)))
