"""The rules that a graph obeys, checked after every pass, so that the pass which breaks one is known."""

from __future__ import annotations

from collections.abc import Callable, Collection

from ...runtime.engine_file.bind import stored
from . import collectives, ops
from .graph import BLOCK, Graph, attribute

LOGICAL: frozenset[tuple[str, str]] = frozenset(
    [
        ("", op)
        for op in (
            "Add",
            "Mul",
            "Split",
            "Constant",
            "RMSNormalization",
            "LayerNormalization",
            "RotaryEmbedding",
            "Slice",
            "Sigmoid",
        )
    ]
    + [("", op) for op, _ in ops.ACTIVATIONS.values()]
    + [(ops.DOMAIN, op) for op in ops.OPERATORS]
)


class BrokenGraph(Exception):
    """A pass left a graph that breaks a rule. That is a bug of llmc, so this is no LlmcError."""


def verify(graph: Graph, operators: Collection[tuple[str, str]]) -> None:
    """Check every rule, and that the graph has only these operators.

    Raises:
        BrokenGraph: the graph breaks a rule; the message names the rule and the first five offenders.
    """
    for rule in _RULES:
        offenders = rule(graph)
        if offenders:
            raise BrokenGraph(f"{(rule.__doc__ or '').strip()}: {', '.join(offenders[:5])}")
    foreign = sorted(
        {f"{n.domain}.{n.op_type}".lstrip(".") for n in graph.nodes if (n.domain, n.op_type) not in operators}
    )
    if foreign:
        raise BrokenGraph(f"operators that do not belong to this phase: {', '.join(foreign)}")


def _known_overloads(graph: Graph) -> list[str]:
    """every llmc operator has a definition, but collectives of one rank"""
    missing = []
    for node in graph.nodes:
        if node.domain != ops.DOMAIN:
            continue
        if ops.is_collective(node):
            if (len(node.inputs), len(node.outputs)) != collectives.ARITY[node.op_type]:
                missing.append(f"{node.name} has {len(node.inputs)} inputs and {len(node.outputs)} outputs")
            continue
        try:
            function = ops.function(node.op_type, node.overload)
        except KeyError:
            missing.append(f"{node.op_type}:{node.overload}")
            continue
        if len(node.inputs) != len(function.input) or len(node.outputs) != len(function.output):
            missing.append(f"{node.name} has {len(node.inputs)} inputs, its definition {len(function.input)}")
    return missing


def late_reads(graph: Graph) -> list[str]:
    """nodes come after what they read"""
    ready = set(graph.body.inputs)
    late = []
    for node in graph.nodes:
        late += [str(value.name) for value in node.inputs if value is not None and value not in ready]
        ready.update(node.outputs)
    return late + [str(value.name) for value in graph.body.outputs if value not in ready]


def _unique(graph: Graph) -> list[str]:
    """names are unique"""
    names = [value.name for value in graph.body.inputs] + [
        v.name for node in graph.nodes for v in node.outputs if v.name
    ]
    return sorted({str(name) for name in names if names.count(name) > 1}) if len(set(names)) < len(names) else []


def _known_tensors(graph: Graph) -> list[str]:
    """every weight expression reads canonical tensors of its own shape"""
    wrong = []
    for name, expr in graph.weights.items():
        for leaf in stored(expr):
            canonical = graph.canonical.get(leaf.name)
            if canonical is None or canonical.stored != leaf:
                wrong.append(f"{name} reads {leaf.name}")
    inputs = {value.name for value in graph.body.inputs}
    return wrong + [name for name in graph.weights if name not in inputs]


def _labelled(graph: Graph) -> list[str]:
    """every node has a block"""
    return [str(node.name) for node in graph.nodes if not node.metadata_props.get(BLOCK)]


def _numbered(graph: Graph) -> list[str]:
    """numbers of values sent to a rank ascend, and so do those of values received from one"""
    last: dict[tuple[str, int], int] = {}
    late = []
    for node in graph.nodes:
        if ops.is_collective(node) and node.op_type in ("Send", "Recv"):
            number, way = attribute(node, "number"), (node.op_type, attribute(node, "peer"))
            late += [str(node.name)] if number <= last.get(way, -1) else []
            last[way] = number
    return late


_RULES: tuple[Callable[[Graph], list[str]], ...] = (
    _known_overloads,
    late_reads,
    _unique,
    _known_tensors,
    _labelled,
    _numbered,
)
