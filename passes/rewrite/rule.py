"""The driver: a pass, a rule that rewrites one pattern, and the walk that applies a rule to a graph.

A rule is pattern, check, rewrite and its own examples. If a value inside the match has a reader outside the pattern,
the rule refuses, because its rewrite would not remove that value.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, get_type_hints

import onnx_ir as ir

from ...runtime.errors import nearest
from ..graph.graph import Builder, Graph, block_of
from .pattern import Depth, Match, Miss, Op, Patterns, Rest, captures, is_operator, outside_reader, ways


class Pass:
    """Rewrites a graph. Its examples are graphs in ONNX text, whose inputs with a capital first letter are weights."""

    fires: ClassVar[Sequence[str]] = ()
    """Graphs that the pass rewrites."""
    refuses: ClassVar[Mapping[str, str]] = {}
    """Graphs that it leaves alone, by the reason of the nearest miss."""
    tolerance: ClassVar[float] = 1e-4
    """Bound of max|a-b| / max|b| between the results a after and b before."""

    @property
    def name(self) -> str:
        return type(self).__name__

    @property
    def reason(self) -> str:
        """The first line of its docstring, or its name where python -OO has dropped that."""
        return next(iter((self.__doc__ or "").strip().splitlines()), self.name)

    def run(self, graph: Graph) -> Outcome:
        """Rewrite `graph` in place."""
        raise TypeError(f"{self.name} has no run")


class Rule(Pass):
    """A pass that rewrites one pattern:

        class SquareRoot(Rule):
            \"""The power 1/2 is a square root, which every kernel library has.\"""

            fires = ("(float[2,3] x) => (float[2,3] y) { e = Constant<value_float=0.5>() y = Pow(x, e) }",)

            @staticmethod
            def pattern(p: Patterns) -> Op:
                return p.Pow("x", p.Constant().named("exponent"))

            def check(self, exponent: ir.Node) -> None:
                require(attribute(exponent, "value_float") == 0.5, "the exponent is not 1/2")

            def rewrite(self, g: Builder, x: ir.Value) -> ir.Value:
                return g("Sqrt", x)

    `check` and `rewrite` take by name the captures that they need; `check` may also take the `graph`, `rewrite` the
    builder `g`. When the class is made, their names and types are compared with the pattern.
    """

    shared_inner: ClassVar[bool] = False
    """True if values inside the match may have other readers; the nodes that compute them then stay."""

    roots: ClassVar[tuple[Op, ...]]
    """The operators whose results the rewrite replaces; matching starts at the first."""
    check_takes: ClassVar[tuple[str, ...]] = ()
    rewrite_takes: ClassVar[tuple[str, ...]] = ()
    """The names of the parameters of `check` and `rewrite`."""

    @staticmethod
    def pattern(p: Patterns) -> Op | tuple[Op, ...]:
        """The root operator (or several results, the first being the root)."""
        raise TypeError("expected a rule with a pattern")

    # To the type system (*args: Any, **kwargs: Any) means "any parameters", so a rule may override these with its own.
    def check(self, *args: Any, **kwargs: Any) -> None:
        """Refuse a match through `require`; must not change the graph."""

    def rewrite(self, *args: Any, **kwargs: Any) -> ir.Value | Sequence[ir.Value]:
        """The values that replace the pattern's results, in order."""
        raise TypeError(f"{self.name} has no rewrite")

    def __init_subclass__(cls) -> None:
        pattern = cls.pattern(Patterns())
        cls.roots = pattern if isinstance(pattern, tuple) else (pattern,)
        known = captures(cls.roots[0])
        if not {root.key for root in cls.roots} <= cls.roots[0].keys():
            raise TypeError(f"expected every result of {cls.__name__}.pattern inside its first operator's pattern")
        if cls.check is not Rule.check:
            cls.check_takes = _takes(cls, cls.check, known, "graph", Graph)
        if cls.rewrite is not Rule.rewrite:
            cls.rewrite_takes = _takes(cls, cls.rewrite, known, "g", Builder)

    def run(self, graph: Graph) -> Outcome:
        return apply(self, graph)


def _takes(
    rule: type[Rule], method: Callable[..., object], known: Mapping[str, object], extra: str, kind: object
) -> tuple[str, ...]:
    """The names of a method's parameters: captures of the pattern, or `extra`, which is no capture.

    Raises:
        TypeError: a name or a type does not agree with the pattern.
    """
    where, types, takes = f"{rule.__name__}.{method.__name__}", get_type_hints(method), {**known, extra: kind}
    if extra in known:
        raise TypeError(f"expected {rule.__name__}.pattern to capture nothing as {extra!r}, which {where} is given")
    names, stars = tuple(inspect.signature(method).parameters)[1:], inspect.getfullargspec(method)[1:3]
    for name in names:
        if name in stars:
            raise TypeError(f"expected {where} to name the captures it takes, found *{name}")
        if name not in takes:
            raise TypeError(f"expected {where} to take captures of its pattern, found {name!r}{nearest(name, takes)}")
        if types.get(name) != takes[name]:
            found = method.__annotations__.get(name, "no type")
            raise TypeError(f"expected {where} to take {name}: {_SPELLED[takes[name]]}, found {found}")
    return names


_SPELLED: dict[object, str] = {
    ir.Value: "ir.Value",
    ir.Value | None: "ir.Value | None",
    ir.Node: "ir.Node",
    Rest: "Rest",
    Graph: "Graph",
    Builder: "Builder",
}


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
    """Rewrite each match of `rule` in one walk through the graph, in order."""
    outcome = Outcome()
    for node in list(graph.nodes):
        if not is_operator(rule.roots[0], node) or node.graph is None:
            continue
        try:
            match = _match(rule, node)
            rule.check(**_chosen(rule.check_takes, match, "graph", graph))
        except Miss as miss:
            outcome.note(miss, node)
            continue
        _replace(rule, graph, match, node)
        outcome.fired += 1
    if outcome.fired:
        graph.remove_dead()
    return outcome


def _chosen(names: Sequence[str], match: Match, extra: str, what: Graph | Builder) -> dict[str, object]:
    return {name: what if name == extra else match.captured[name] for name in names}


def _match(rule: Rule, node: ir.Node) -> Match:
    best = Miss("the pattern does not fit", Depth.NOTHING)
    for candidate in ways(rule.roots[0], node, Match(), Depth.NOTHING):
        if isinstance(candidate, Miss):
            best = candidate if candidate.depth >= best.depth else best
            continue
        reason = "" if rule.shared_inner else outside_reader(rule.roots, candidate)
        if not reason:
            return candidate
        best = Miss(reason, Depth.READ_OUTSIDE)
    raise best


def _replace(rule: Rule, graph: Graph, match: Match, node: ir.Node) -> None:
    builder = graph.build(block_of(match.by_key.values()), before=node)
    new = rule.rewrite(**_chosen(rule.rewrite_takes, match, "g", builder))
    values = [new] if isinstance(new, ir.Value) else list(new)
    old = [match.by_key[root.key].outputs[root.output] for root in rule.roots]
    for before, after in zip(old, values, strict=True):
        replace_value(before, after)


def replace_value(before: ir.Value, after: ir.Value) -> None:
    """Let every reader of `before` read `after`, which takes over its type and shape where it has none, and its name if
    it is an output of the graph."""
    if after.type is None:
        after.type, after.shape = before.type, before.shape
    if before.is_graph_output():
        public, before.name = before.name, f"{before.name}.replaced"
        after.name = public
    before.replace_all_uses_with(after, replace_graph_outputs=True)
