"""The rule engine: a rule is pattern, check, rewrite and its own examples; a miss carries its reason.

A pattern is a small tree of operators whose leaves are names of values. Matching starts at the root operator and walks
to producers. A last argument `"*name"` captures all remaining inputs. An inner value that somebody outside the pattern
also reads refuses the match, because rewriting would not remove it.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

import onnx_ir as ir

from ..compiler.graph import Builder, Graph, block_of

COMMUTATIVE = {("", "Add"), ("", "Mul")}


class Miss(Exception):
    """Why a pattern or its check refused; `depth` counts the operators that had matched: deeper is nearer."""

    def __init__(self, reason: str, depth: int = 0) -> None:
        super().__init__(reason)
        self.reason, self.depth = reason, depth


def require(condition: object, reason: str) -> None:
    """Refuse the match with `reason` unless `condition` holds."""
    if not condition:
        raise Miss(reason, depth=100)


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
        return Op(self.domain, self.type, self.args, label, self.output, self.key)

    def out(self, index: int) -> Op:
        """Another result of the same node."""
        return Op(self.domain, self.type, self.args, self.label, index, self.key)


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
    """What a pattern captured: values by name, nodes by label."""

    values: dict[str, ir.Value | None] = field(default_factory=dict)
    nodes: dict[str, ir.Node] = field(default_factory=dict)
    by_key: dict[object, ir.Node] = field(default_factory=dict)
    rests: dict[str, tuple[ir.Value | None, ...]] = field(default_factory=dict)

    def __getattr__(self, name: str) -> Any:
        if name in self.values:
            return self.values[name]
        if name in self.rests:
            return self.rests[name]
        if name in self.nodes:
            return self.nodes[name]
        raise AttributeError(name)


class Pass:
    """Anything that rewrites a graph. `fires` and `refuses` are its examples, in ONNX text: inputs with a capital first
    letter are weights. The keys of `refuses` are the reasons its nearest miss must give."""

    fires: ClassVar[Sequence[str]] = ()
    refuses: ClassVar[Mapping[str, str]] = {}
    tolerance: ClassVar[float] = 1e-4
    """Bound of max|a-b|/max|b| between the graphs before and after."""

    @property
    def name(self) -> str:
        return type(self).__name__

    @property
    def reason(self) -> str:
        return (self.__doc__ or "").strip().splitlines()[0]

    def run(self, graph: Graph) -> Outcome:
        """Rewrite `graph` in place."""
        raise TypeError(f"{self.name} has no run")


class Rule(Pass):
    """A pass that rewrites one pattern. Subclasses give `pattern`, `rewrite`, and usually `check`."""

    shared_inner: ClassVar[bool] = False
    """Inner values may have other readers: the rewrite leaves them to those."""

    def pattern(self, p: Patterns) -> Op | tuple[Op, ...]:
        """The root operator (or several results, the first being the root)."""
        raise TypeError(f"{self.name} has no pattern")

    def check(self, graph: Graph, m: Match) -> None:
        """Refuse through `require`; must not change the graph."""

    def rewrite(self, g: Builder, m: Match) -> ir.Value | Sequence[ir.Value]:
        """New values for the pattern's results, in order."""
        raise TypeError(f"{self.name} has no rewrite")

    def run(self, graph: Graph) -> Outcome:
        return apply(self, graph)


@dataclass
class Outcome:
    """How often a rule fired, and its nearest miss."""

    fired: int = 0
    miss: Miss | None = None
    at: str = ""

    def note(self, miss: Miss, node: ir.Node) -> None:
        if self.miss is None or miss.depth > self.miss.depth:
            self.miss, self.at = miss, node.name or ""


def apply(rule: Rule, graph: Graph) -> Outcome:
    """Rewrite every place where `rule` matches, walking the graph once in order."""
    outcome = Outcome()
    pattern = rule.pattern(Patterns())
    roots = pattern if isinstance(pattern, tuple) else (pattern,)
    root = roots[0]
    for node in list(graph.nodes):
        if not _is(root, node) or node.graph is None:
            continue
        try:
            match = _match(rule, roots, node)
            rule.check(graph, match)
        except Miss as miss:
            outcome.note(miss, node)
            continue
        _replace(rule, graph, roots, match, node)
        outcome.fired += 1
    if outcome.fired:
        graph.remove_dead()
    return outcome


def _match(rule: Rule, roots: tuple[Op, ...], node: ir.Node) -> Match:
    best = Miss("the pattern does not fit")
    for candidate in _nodes(roots[0], node, Match(), 0):
        if isinstance(candidate, Miss):
            best = candidate if candidate.depth >= best.depth else best
            continue
        reason = "" if rule.shared_inner else _outside_reader(roots, candidate)
        if not reason:
            return candidate
        best = Miss(reason, depth=90)
    raise best


def _nodes(op: Op, node: ir.Node, match: Match, depth: int) -> Iterator[Match | Miss]:
    """All ways `op` matches `node`, extending `match`; misses are yielded as values so the nearest can be kept."""
    known = match.by_key.get(op.key)
    if known is not None:
        yield match if known is node else Miss(f"{op.type} is another node than before", depth)
        return
    if not _is(op, node):
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
        start = Match(dict(match.values), dict(match.nodes), {**match.by_key, op.key: node}, dict(match.rests))
        if rest:
            start.rests[rest] = remaining
        if op.label:
            start.nodes[op.label] = node
        yield from _arguments(list(zip(args, inputs, strict=True)), start, depth + 1)


def _is(op: Op, node: ir.Node) -> bool:
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
        if pattern in match.values and match.values[pattern] is not value:
            yield Miss(f"{pattern!r} stands for two different values", depth)
        else:
            yield Match({**match.values, pattern: value}, match.nodes, match.by_key, match.rests)
        return
    producer = value.producer() if value is not None else None
    if value is None or producer is None:
        yield Miss(f"want {pattern.type}, found {'nothing' if value is None else 'an input'}", depth)
        return
    if value.index() != pattern.output:
        yield Miss(f"want result {pattern.output} of {pattern.type}, found result {value.index()}", depth)
        return
    yield from _nodes(pattern, producer, match, depth)


def _outside_reader(roots: tuple[Op, ...], match: Match) -> str:
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


def _replace(rule: Rule, graph: Graph, roots: tuple[Op, ...], match: Match, node: ir.Node) -> None:
    builder = graph.build(block_of(match.by_key.values()), before=node)
    new = rule.rewrite(builder, match)
    values = [new] if isinstance(new, ir.Value) else list(new)
    old = [match.by_key[root.key].outputs[root.output] for root in roots]
    for before, after in zip(old, values, strict=True):
        take_over(before, after)


def take_over(before: ir.Value, after: ir.Value) -> None:
    """Let `after` stand wherever `before` stood: uses, graph outputs, type, shape; outputs keep their public name."""
    if after.type is None:
        after.type, after.shape = before.type, before.shape
    if before.is_graph_output():
        public, before.name = before.name, f"{before.name}.replaced"
        after.name = public
    before.replace_all_uses_with(after, replace_graph_outputs=True)
