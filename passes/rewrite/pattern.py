"""The pattern language: a small tree of operators whose leaves name values, the matcher, and what a match captures.

Matching starts at the root operator and walks to producers. `"x"` captures an input, `"x?"` an input that may be
absent, and a last argument `"*xs"` all remaining inputs. A miss carries its reason.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from enum import IntEnum

import onnx_ir as ir

COMMUTATIVE = {("", "Add"), ("", "Mul")}

Rest = tuple[ir.Value | None, ...]
"""The type of a capture `"*xs"`."""

Captured = ir.Value | ir.Node | Rest | None


class Depth(IntEnum):
    """How near a miss came to a rewrite; a pass reports its deepest miss. Inside a pattern the depth is the number of
    operators that matched, which stays below WEIGHTS."""

    NOTHING = 0
    """No operator matched."""
    OPERATOR = 1
    """The first operator matched, but not its neighbours."""
    WEIGHTS = 80
    """All operators matched, but their weights do not go together."""
    READ_OUTSIDE = 90
    """All operators matched, but a value between them has another reader."""
    CHECKED = 100
    """All matched, but the pass, the recipe or the target refused."""


class Miss(Exception):
    """Why a pattern or a check refused a place, and its depth (Depth, or the number of operators that matched)."""

    def __init__(self, reason: str, depth: int) -> None:
        super().__init__(reason)
        self.reason, self.depth = reason, depth


def require(condition: object, reason: str) -> None:
    """Refuse the match with `reason` unless `condition` holds."""
    if not condition:
        raise Miss(reason, Depth.CHECKED)


@dataclass(frozen=True, eq=False)
class Op:
    """An operator in a pattern; copies by `named` and `out` stand for the same node."""

    domain: str
    type: str
    """An operator type, or alternatives: "Swish|Gelu"."""
    args: tuple[Op | str, ...]
    label: str = ""
    """The name under which the node is captured."""
    output: int = 0
    """Which result of the node is meant."""
    key: object = field(default_factory=object)

    def named(self, label: str) -> Op:
        """Capture the node as `label`."""
        return replace(self, label=label)

    def out(self, index: int) -> Op:
        """Another result of the same node."""
        return replace(self, output=index)

    def arguments(self) -> tuple[tuple[Op | str, ...], str]:
        """The patterns of single inputs, and the name of the capture of all others or ""."""
        if self.args and isinstance(last := self.args[-1], str) and last.startswith("*"):
            return self.args[:-1], last[1:]
        return self.args, ""

    def keys(self) -> set[object]:
        """The keys of this operator and of all below it."""
        return {self.key}.union(*(arg.keys() for arg in self.args if isinstance(arg, Op)))


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


def captures(root: Op) -> dict[str, object]:
    """Name to type of all that a pattern captures: `ir.Value`, `ir.Value | None`, `ir.Node` or `Rest`.

    Raises:
        TypeError: a name stands for two different things, or is no name, as that of a `"*xs"` before the last argument.
    """
    found: dict[str, tuple[object, object]] = {}

    def add(name: str, kind: object, place: object) -> None:
        if not name.isidentifier():
            raise TypeError(f"expected a name to capture as in a pattern, found {name!r}")
        if found.setdefault(name, (kind, place)) != (kind, place):
            raise TypeError(f"expected one meaning of {name!r} in a pattern, found two")

    def visit(op: Op) -> None:
        args, rest = op.arguments()
        if op.label:
            add(op.label, ir.Node, op.key)
        if rest:
            add(rest, Rest, op.key)
        for arg in args:
            if isinstance(arg, Op):
                visit(arg)
            else:
                add(arg.removesuffix("?"), ir.Value | None if arg.endswith("?") else ir.Value, "")

    visit(root)
    return {name: kind for name, (kind, _) in found.items()}


@dataclass(frozen=True)
class Match:
    """What a pattern captured by name, and the node that each of its operators matched."""

    captured: Mapping[str, Captured] = field(default_factory=dict)
    by_key: Mapping[object, ir.Node] = field(default_factory=dict)

    def also(self, name: str, what: Captured) -> Match:
        """This match and one more capture."""
        return Match({**self.captured, name: what}, self.by_key)


def ways(op: Op, node: ir.Node, match: Match, depth: int) -> Iterator[Match | Miss]:
    """All ways in which `op` matches `node`, as extensions of `match`. Misses are yielded too, to find the nearest."""
    known = match.by_key.get(op.key)
    if known is not None and known is not node:
        yield Miss(f"{op.type} is another node than before", depth)
        return
    if not is_operator(op, node):
        yield Miss(f"want {op.type}, found {node.op_type}", depth)
        return
    if op.label:
        match = match.also(op.label, node)
    if known is not None:
        yield match
        return
    args, rest = op.arguments()
    inputs = list(node.inputs) + [None] * (len(args) - len(node.inputs))
    if rest:
        match = match.also(rest, tuple(inputs[len(args) :]))
    elif len(inputs) > len(args):
        yield Miss(f"{op.type} has {len(inputs)} inputs, want {len(args)}", depth)
        return
    match = Match(match.captured, {**match.by_key, op.key: node})
    orders = [args, args[::-1]] if (op.domain, op.type) in COMMUTATIVE else [args]
    for order in orders:
        yield from _arguments(list(zip(order, inputs, strict=False)), match, depth + 1)


def is_operator(op: Op, node: ir.Node) -> bool:
    """True if the node has the pattern's domain and one of its types; its inputs are not compared."""
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
        name = pattern.removesuffix("?")
        if value is None and name == pattern:
            yield Miss(f"want {name}, found nothing", depth)
        elif match.captured.get(name, value) is not value:
            yield Miss(f"{name!r} stands for two different values", depth)
        else:
            yield match.also(name, value)
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
    """Why a match cannot be replaced, or "": a value inside it, no result, has another reader or is a graph output."""
    nodes = list(match.by_key.values())
    results = {(match.by_key[root.key], root.output) for root in roots if root.key in match.by_key}
    for node, value in itertools.chain.from_iterable(((n, v) for v in n.outputs) for n in nodes):
        if (node, value.index()) in results:
            continue
        if value.is_graph_output():
            return f"the result of {node.op_type} is an output of the graph"
        if any(user not in nodes for user, _ in value.uses()):
            return f"the result of {node.op_type} is read outside the pattern"
    return ""
