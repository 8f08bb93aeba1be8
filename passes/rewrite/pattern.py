"""Patterns of operators and what they capture: a small tree of operators whose leaves are names of values.

Matching starts at the root operator and walks to producers. A last argument `"*name"` captures all remaining inputs. A
miss carries its reason.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import onnx_ir as ir

COMMUTATIVE = {("", "Add"), ("", "Mul")}


READ_OUTSIDE, CHECKED = 90, 100
"""Depths of misses of whole patterns: somebody else reads an inner value; only the rule's own check refuses."""


class Miss(Exception):
    """Why a pattern or its check refused; `depth` counts the operators that had matched: deeper is nearer."""

    def __init__(self, reason: str, depth: int = 0) -> None:
        super().__init__(reason)
        self.reason, self.depth = reason, depth


def require(condition: object, reason: str) -> None:
    """Refuse the match with `reason` unless `condition` holds."""
    if not condition:
        raise Miss(reason, CHECKED)


@dataclass(frozen=True, eq=False)
class Op:
    """An operator in a pattern: domain, type, argument patterns; `label` names the node, `output` picks a result.

    A type may be alternatives, "Swish|Gelu".
    """

    domain: str
    type: str
    args: tuple[Op | str, ...]
    label: str = ""
    output: int = 0
    key: object = field(default_factory=object)

    def named(self, label: str) -> Op:
        return replace(self, label=label)

    def out(self, index: int) -> Op:
        """Another result of the same node."""
        return replace(self, output=index)


class Domain:
    """`p.Add("x", "r")`: writes patterns as calls."""

    def __init__(self, domain: str = "") -> None:
        self._domain = domain

    def __getattr__(self, op: str) -> Callable[..., Op]:
        return lambda *args: Op(self._domain, op, args)


class Patterns(Domain):
    """The pattern namespace: standard operators directly, llmc's under `llmc`."""

    llmc = Domain("llmc")

    def one_of(self, types: Sequence[str], *args: Op | str) -> Op:
        """A standard operator of any of these types."""
        return Op("", "|".join(types), args)


@dataclass
class Match:
    """What a pattern captured, by name: values, nodes by label, tuples of remaining inputs."""

    captured: dict[str, Any] = field(default_factory=dict)
    by_key: dict[object, ir.Node] = field(default_factory=dict)

    def __getattr__(self, name: str) -> Any:
        if name not in self.captured:
            raise AttributeError(name)
        return self.captured[name]


def ways(op: Op, node: ir.Node, match: Match, depth: int) -> Iterator[Match | Miss]:
    """All ways `op` matches `node`, extending `match`; misses are yielded as values so the nearest can be kept."""
    known = match.by_key.get(op.key)
    if known is not None:
        yield match if known is node else Miss(f"{op.type} is another node than before", depth)
        return
    if not is_operator(op, node):
        yield Miss(f"want {op.type}, found {node.op_type}", depth)
        return
    args, rest = op.args, ""
    if args and isinstance(args[-1], str) and args[-1].startswith("*"):
        args, rest = args[:-1], args[-1][1:]
    inputs = list(node.inputs) + [None] * (len(args) - len(node.inputs))
    if len(inputs) > len(args) and not rest:
        yield Miss(f"{op.type} has {len(inputs)} inputs, want {len(args)}", depth)
        return
    inputs, remaining = inputs[: len(args)], tuple(inputs[len(args) :])
    orders = [args]
    if (op.domain, op.type) in COMMUTATIVE:
        orders.append(tuple(reversed(args)))
    for args in orders:
        found = {name: what for name, what in ((rest, remaining), (op.label, node)) if name}
        start = Match(match.captured | found, {**match.by_key, op.key: node})
        yield from _arguments(list(zip(args, inputs, strict=True)), start, depth + 1)


def is_operator(op: Op, node: ir.Node) -> bool:
    """True if the node is of the pattern's domain and one of its types; its arguments are not looked at."""
    return node.domain == op.domain and node.op_type in op.type.split("|")


def _arguments(pairs: list[tuple[Op | str, ir.Value | None]], match: Match, depth: int) -> Iterator[Match | Miss]:
    if not pairs:
        yield match
        return
    (pattern, value), rest = pairs[0], pairs[1:]
    for found in _value(pattern, value, match, depth):
        if isinstance(found, Miss):
            yield found
        else:
            yield from _arguments(rest, found, depth)


def _value(pattern: Op | str, value: ir.Value | None, match: Match, depth: int) -> Iterator[Match | Miss]:
    if isinstance(pattern, str):
        if match.captured.get(pattern, value) is not value:
            yield Miss(f"{pattern!r} stands for two different values", depth)
        else:
            yield Match({**match.captured, pattern: value}, match.by_key)
        return
    producer = value.producer() if value is not None else None
    if value is None or producer is None:
        yield Miss(f"want {pattern.type}, found {'nothing' if value is None else 'an input'}", depth)
        return
    if value.index() != pattern.output:
        yield Miss(f"want result {pattern.output} of {pattern.type}, found result {value.index()}", depth)
        return
    yield from ways(pattern, producer, match, depth)


def outside_reader(roots: tuple[Op, ...], match: Match) -> str:
    """The reason if a value inside the pattern, other than its results, is read outside or is a graph output."""
    nodes = set(match.by_key.values())
    results = {(match.by_key[root.key], root.output) for root in roots if root.key in match.by_key}
    for node, value in itertools.chain.from_iterable(((n, v) for v in n.outputs) for n in nodes):
        if (node, value.index()) in results:
            continue
        if value.is_graph_output():
            return f"the result of {node.op_type} is an output of the graph"
        if any(user not in nodes for user, _ in value.uses()):
            return f"the result of {node.op_type} is read outside the pattern"
    return ""
