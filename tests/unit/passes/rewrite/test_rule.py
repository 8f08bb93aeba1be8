"""The rule engine: what `check` and `rewrite` may name, what they are given, and which miss is reported."""

from __future__ import annotations

import re
import textwrap
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import onnx_ir as ir
import pytest
from support import graphs

from llmc.passes.graph.graph import Builder, Graph, attribute, width
from llmc.passes.rewrite.pattern import Depth, Op, Patterns, Rest, captures, require
from llmc.passes.rewrite.rule import Rule

SWISH = "(float[2,4] x) => (float[2,4] y) { y = Swish(x) }"
SLICE = "(float[6] x, int64[1] starts, int64[1] ends, int64[1] axes) => (float[N] y)"


class _OfSlice(Rule):
    """Captures a value, an optional value, all other inputs and a node."""

    @staticmethod
    def pattern(p: Patterns) -> Op:
        return p.Slice("x", "starts", "ends", "axes?", "*others").named("slice")


def _misspelt() -> object:
    class Wrong(_OfSlice):
        def check(self, strats: ir.Value) -> None: ...

    return Wrong


def _unlike_any() -> object:
    class Wrong(_OfSlice):
        def rewrite(self, g: Builder, weight: ir.Value) -> ir.Value: ...

    return Wrong


def _builder_in_check() -> object:
    class Wrong(_OfSlice):
        def check(self, g: Builder) -> None: ...

    return Wrong


def _value_as_node() -> object:
    class Wrong(_OfSlice):
        def check(self, x: ir.Node) -> None: ...

    return Wrong


def _node_as_value() -> object:
    class Wrong(_OfSlice):
        def rewrite(self, g: Builder, slice: ir.Value) -> ir.Value: ...

    return Wrong


def _absent_unheard_of() -> object:
    class Wrong(_OfSlice):
        def check(self, axes: ir.Value) -> None: ...

    return Wrong


def _rest_as_value() -> object:
    class Wrong(_OfSlice):
        def check(self, others: ir.Value) -> None: ...

    return Wrong


def _untyped() -> object:
    class Wrong(_OfSlice):
        def check(self, x) -> None: ...

    return Wrong


def _any_keywords() -> object:
    class Wrong(_OfSlice):
        def check(self, **anything: ir.Value) -> None: ...

    return Wrong


def _any_captures() -> object:
    class Wrong(_OfSlice):
        def check(self, *x: ir.Value) -> None: ...

    return Wrong


def _result_elsewhere() -> object:
    class Wrong(Rule):
        @staticmethod
        def pattern(p: Patterns) -> tuple[Op, ...]:
            return p.Relu("x"), p.Neg("x")

    return Wrong


def _rest_before_the_last() -> object:
    class Wrong(Rule):
        @staticmethod
        def pattern(p: Patterns) -> Op:
            return p.Sum("*xs", "y")

    return Wrong


def _inherited() -> object:
    class Right(_OfSlice):
        def check(self, starts: ir.Value) -> None: ...

    class Wrong(Right):
        @staticmethod
        def pattern(p: Patterns) -> Op:
            return p.Slice("x", "begins", "ends")

    return Wrong


def _captures_the_builder() -> object:
    class Wrong(Rule):
        @staticmethod
        def pattern(p: Patterns) -> Op:
            return p.Swish("g")

        def rewrite(self, g: Builder) -> ir.Value: ...

    return Wrong


def _without_pattern() -> object:
    class Wrong(Rule):
        pass

    return Wrong


@pytest.mark.parametrize(
    ("define", "message"),
    [
        (_misspelt, "expected Wrong.check to take captures of its pattern, found 'strats' (did you mean 'starts'?)"),
        (_unlike_any, "expected Wrong.rewrite to take captures of its pattern, found 'weight'"),
        (_builder_in_check, "expected Wrong.check to take captures of its pattern, found 'g'"),
        (_value_as_node, "expected Wrong.check to take x: ir.Value, found ir.Node"),
        (_node_as_value, "expected Wrong.rewrite to take slice: ir.Node, found ir.Value"),
        (_absent_unheard_of, "expected Wrong.check to take axes: ir.Value | None, found ir.Value"),
        (_rest_as_value, "expected Wrong.check to take others: Rest, found ir.Value"),
        (_untyped, "expected Wrong.check to take x: ir.Value, found no type"),
        (_any_keywords, "expected Wrong.check to name the captures it takes, found *anything"),
        (_any_captures, "expected Wrong.check to name the captures it takes, found *x"),
        (_result_elsewhere, "expected every result of Wrong.pattern inside its first operator's pattern"),
        (_rest_before_the_last, "expected a name to capture as in a pattern, found '*xs'"),
        (_inherited, "expected Wrong.check to take captures of its pattern, found 'starts'"),
        (_captures_the_builder, "expected Wrong.pattern to capture nothing as 'g', which Wrong.rewrite is given"),
        (_without_pattern, "expected a rule with a pattern"),
    ],
)
def test_a_parameter_that_does_not_agree_with_the_pattern_fails_where_the_class_is_made(
    define: Callable[[], object], message: str
) -> None:
    with pytest.raises(TypeError) as caught:
        define()
    assert str(caught.value) == message


def test_methods_are_given_what_they_name_and_nothing_else() -> None:
    seen: dict[str, object] = {}

    class Sees(_OfSlice):
        def check(self, graph: Graph, axes: ir.Value | None, others: Rest, slice: ir.Node) -> None:
            seen.update(graph=graph, axes=axes, others=others, slice=slice)
            require(False, "seen")

    for given, axes, others in (("", None, ()), (", axes", "axes", ()), (", axes, axes", "axes", ("axes",))):
        graph = graphs.parse(f"{SLICE} {{ y = Slice(x, starts, ends{given}) }}").graph
        outcome = Sees().run(graph)
        assert outcome.miss is not None and (outcome.miss.reason, outcome.miss.depth) == ("seen", Depth.CHECKED)
        assert seen["graph"] is graph and seen["slice"] is next(iter(graph.nodes))
        assert getattr(seen["axes"], "name", None) == axes
        assert isinstance(seen["others"], tuple)
        assert tuple(value.name for value in seen["others"]) == others


def test_an_input_that_is_absent_is_a_miss_unless_the_pattern_allows_it() -> None:
    class Needs(Rule):
        @staticmethod
        def pattern(p: Patterns) -> Op:
            return p.Slice("x", "starts", "ends", "axes")

    class Allows(Rule):
        @staticmethod
        def pattern(p: Patterns) -> Op:
            return p.Slice("x", "starts", "ends", "axes?")

        def rewrite(self, g: Builder, x: ir.Value) -> ir.Value:
            return g("Relu", x)

    example = graphs.parse(f"{SLICE} {{ y = Slice(x, starts, ends) }}")
    miss = Needs().run(example.graph).miss
    assert miss is not None and miss.reason == "want axes, found nothing"
    assert Allows().run(example.graph).fired == 1
    assert [node.op_type for node in example.graph.nodes] == ["Relu"]


def test_a_rule_may_hold_data_that_its_methods_read() -> None:
    @dataclass(frozen=True)
    class Widen(Rule):
        narrowest: int

        @staticmethod
        def pattern(p: Patterns) -> Op:
            return p.Swish("x")

        def check(self, x: ir.Value) -> None:
            require(width(x) >= self.narrowest, f"narrower than {self.narrowest}")

        def rewrite(self, g: Builder, x: ir.Value) -> ir.Value:
            return g("Relu", x)

    refused = Widen(8).run(graphs.parse(SWISH).graph)
    assert refused.miss is not None and refused.miss.reason == "narrower than 8"
    assert Widen(4).run(graphs.parse(SWISH).graph).fired == 1


def test_a_rule_without_a_rewrite_says_so() -> None:
    with pytest.raises(TypeError, match=re.escape("_OfSlice has no rewrite")):
        _OfSlice().run(graphs.parse(f"{SLICE} {{ y = Slice(x, starts, ends) }}").graph)


def test_the_deepest_miss_is_reported() -> None:
    class Products(Rule):
        @staticmethod
        def pattern(p: Patterns) -> Op:
            return p.Mul(p.Swish(p.Relu("x")), "y")

    text = (
        "(float[2,4] a) => (float[2,4] z) "
        "{ plain = Mul(a, a) s = Swish(plain) near = Mul(s, a) t = Swish(a) z = Mul(near, t) }"
    )
    outcome = Products().run(graphs.parse(text).graph)
    assert outcome.miss is not None and (outcome.miss.reason, outcome.miss.depth) == ("want Relu, found Mul", 2)


def test_the_rule_in_the_documentation_works() -> None:
    names: dict[str, Any] = {**globals(), "attribute": attribute}
    lines = (Rule.__doc__ or "").splitlines()
    exec(textwrap.dedent("\n".join(line for line in lines[1:] if line.startswith(" " * 8) or not line)), names)
    rule = names["SquareRoot"]()
    example = graphs.parse(rule.fires[0])
    assert rule.run(example.graph).fired == 1
    assert [node.op_type for node in example.graph.nodes] == ["Sqrt"]
    assert rule.reason == "The power 1/2 is a square root, which every kernel library has."
    cube = rule.run(graphs.parse(rule.fires[0].replace("0.5", "3.0")).graph)
    assert cube.miss is not None and cube.miss.reason == "the exponent is not 1/2"


def test_a_name_stands_for_one_thing() -> None:
    p, both = Patterns(), "expected one meaning of 'a' in a pattern, found two"
    assert captures(p.Add("a", p.Mul("a", "b").named("c"))) == {"a": ir.Value, "b": ir.Value, "c": ir.Node}
    split = p.Split("a", "*sizes").named("split")
    assert captures(p.Mul(split, split.out(1))) == {"a": ir.Value, "sizes": Rest, "split": ir.Node}
    for wrong in (
        p.Add("a", "a?"),
        p.Add("a", "b").named("a"),
        p.Add(p.Concat("*a"), p.Concat("*a")),
        p.Add(p.Relu("x").named("a"), p.Relu("y").named("a")),
    ):
        with pytest.raises(TypeError, match=both):
            captures(wrong)
