"""The rule engine: a rule is pattern, check, rewrite and its own examples; a miss carries its reason.

An inner value that somebody outside the pattern also reads refuses the match, because rewriting would not remove it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

import onnx_ir as ir

from ..graph.graph import Builder, Graph, block_of
from .pattern import READ_OUTSIDE, Match, Miss, Op, Patterns, is_operator, outside_reader, ways


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
        if not is_operator(root, node) or node.graph is None:
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
    for candidate in ways(roots[0], node, Match(), 0):
        if isinstance(candidate, Miss):
            best = candidate if candidate.depth >= best.depth else best
            continue
        reason = "" if rule.shared_inner else outside_reader(roots, candidate)
        if not reason:
            return candidate
        best = Miss(reason, READ_OUTSIDE)
    raise best


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
