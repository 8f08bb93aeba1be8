"""Expressions: each node of Jinja2's syntax tree becomes a function of a frame; no Python code is generated."""

from __future__ import annotations

import operator
from collections.abc import Callable, Mapping
from typing import Any

from jinja2 import nodes
from jinja2.exceptions import TemplateAssertionError
from jinja2.idtracking import VAR_LOAD_PARAMETER
from jinja2.runtime import Undefined
from jinja2.utils import missing

from .frames import Code, Frame, Scope, variable
from .meter import CHARS_LOG2, ELEMENTS_LOG2, Refused, bits
from .sandbox import Sandbox

_COMPARE: dict[str, Callable[[Any, Any], Any]] = {
    "eq": operator.eq,
    "ne": operator.ne,
    "gt": operator.gt,
    "gteq": operator.ge,
    "lt": operator.lt,
    "lteq": operator.le,
    "in": lambda a, b: a in b,
    "notin": lambda a, b: a not in b,
}
_ARITHMETIC: dict[type[nodes.Expr], Callable[[Any, Any], Any]] = {
    nodes.Add: operator.add,
    nodes.Sub: operator.sub,
    nodes.Mul: operator.mul,
    nodes.Div: operator.truediv,
    nodes.FloorDiv: operator.floordiv,
    nodes.Mod: operator.mod,
    nodes.Pow: operator.pow,
}
_UNARY: dict[type[nodes.Expr], Callable[[Any], Any]] = {
    nodes.Not: operator.not_,
    nodes.Neg: operator.neg,
    nodes.Pos: operator.pos,
}


class Expressions:
    """Builds the functions of expressions; a subclass builds those of statements."""

    def __init__(self, sandbox: Sandbox) -> None:
        self.sandbox = sandbox
        self.unstored: frozenset[str] = frozenset()
        """Parameters of the macro whose defaults are being built that have no value yet."""

    def build(self, node: nodes.Node, scope: Scope) -> Code:
        if type(node) in _ARITHMETIC:
            return self._binary(node, scope)  # type: ignore[arg-type]
        if type(node) in _UNARY:
            return self._unary(node, scope)  # type: ignore[arg-type]
        return getattr(self, f"build_{type(node).__name__}")(node, scope)

    def build_Const(self, node: nodes.Const, scope: Scope) -> Code:
        value = node.value
        if isinstance(value, int):
            bits(value)
        return lambda at: value

    def build_TemplateData(self, node: nodes.TemplateData, scope: Scope) -> Code:
        value = node.data
        return lambda at: value

    def build_Name(self, node: nodes.Name, scope: Scope) -> Code:
        name, line, ident = node.name, node.lineno, scope.symbols.ref(node.name)
        hops, (action, _) = scope.hops(ident), scope.symbols.find_load(ident) or (None, None)
        # a macro that outlives its loop sees Jinja2's `missing` for the loop's variables, which is not undefined
        raw = action == VAR_LOAD_PARAMETER and ident not in self.unstored

        def load(at: Frame) -> Any:
            at.sandbox.meter.step(line)
            value = variable(at, ident, hops)
            return at.sandbox.undefined(name=name) if value is missing and not raw else value

        return load

    def _sequence(self, node: nodes.Tuple | nodes.List, scope: Scope, kind: Callable[[Any], Any]) -> Code:
        items = [self.build(one, scope) for one in node.items]
        return lambda at: kind([item(at) for item in items])

    def build_Tuple(self, node: nodes.Tuple, scope: Scope) -> Code:
        return self._sequence(node, scope, tuple)

    def build_List(self, node: nodes.List, scope: Scope) -> Code:
        return self._sequence(node, scope, list)

    def build_Dict(self, node: nodes.Dict, scope: Scope) -> Code:
        pairs = [(self.build(pair.key, scope), self.build(pair.value, scope)) for pair in node.items]
        return lambda at: {key(at): value(at) for key, value in pairs}

    def build_CondExpr(self, node: nodes.CondExpr, scope: Scope) -> Code:
        scope = scope.softened()
        test, yes = self.build(node.test, scope), self.build(node.expr1, scope)
        if node.expr2 is not None:
            no = self.build(node.expr2, scope)
            return lambda at: yes(at) if test(at) else no(at)
        hint = f"the inline if-expression on line {node.lineno} evaluated to false and no else section was defined."
        return lambda at: yes(at) if test(at) else Undefined(hint)

    def build_And(self, node: nodes.And, scope: Scope) -> Code:
        left, right = self.build(node.left, scope), self.build(node.right, scope)
        return lambda at: left(at) and right(at)

    def build_Or(self, node: nodes.Or, scope: Scope) -> Code:
        left, right = self.build(node.left, scope), self.build(node.right, scope)
        return lambda at: left(at) or right(at)

    def _unary(self, node: nodes.UnaryExpr, scope: Scope) -> Code:
        operand, apply, line = self.build(node.node, scope), _UNARY[type(node)], node.lineno

        def evaluate(at: Frame) -> Any:
            value = operand(at)
            at.sandbox.meter.step(line)
            return apply(value)

        return evaluate

    def _binary(self, node: nodes.BinExpr, scope: Scope) -> Code:
        left, right = self.build(node.left, scope), self.build(node.right, scope)
        kind, apply, line = type(node), _ARITHMETIC[type(node)], node.lineno

        def evaluate(at: Frame) -> Any:
            a, b = left(at), right(at)
            meter = at.sandbox.meter
            meter.step(line)
            if kind is nodes.Mul:
                meter.product(a, b)
            elif kind is nodes.Pow:
                meter.power(a, b)
            elif kind is nodes.Mod and isinstance(a, str):
                meter.formatted(a, b)
            elif isinstance(a, str) and isinstance(b, str):
                meter.charge(len(a) + len(b) >> CHARS_LOG2)
            elif isinstance(a, list | tuple) and isinstance(b, list | tuple):
                meter.charge(len(a) + len(b) >> ELEMENTS_LOG2)
            return meter.made(apply(a, b))

        return evaluate

    def build_Concat(self, node: nodes.Concat, scope: Scope) -> Code:
        parts, line = [self.build(one, scope) for one in node.nodes], node.lineno

        def evaluate(at: Frame) -> str:
            values = [part(at) for part in parts]
            at.sandbox.meter.step(line)
            return at.sandbox.meter.made("".join(map(at.sandbox.meter.text, values)))

        return evaluate

    def build_Compare(self, node: nodes.Compare, scope: Scope) -> Code:
        first, line = self.build(node.expr, scope), node.lineno
        rest = [(one.op, _COMPARE[one.op], self.build(one.expr, scope)) for one in node.ops]

        def evaluate(at: Frame) -> Any:
            left, result = first(at), True
            for name, compare, operand in rest:
                right, meter = operand(at), at.sandbox.meter
                meter.step(line)
                if name not in ("in", "notin"):
                    meter.charge(min(meter.weigh(left), meter.weigh(right)))
                elif not isinstance(right, dict | range):
                    meter.charge(meter.weigh(right))
                if not (result := compare(left, right)):
                    break
                left = right
            return result

        return evaluate

    def build_Getattr(self, node: nodes.Getattr, scope: Scope) -> Code:
        target, name, line = self.build(node.node, scope), node.attr, node.lineno

        def evaluate(at: Frame) -> Any:
            value = target(at)
            at.sandbox.meter.step(line)
            return at.sandbox.getattr(value, name)

        return evaluate

    def build_Getitem(self, node: nodes.Getitem, scope: Scope) -> Code:
        target, line = self.build(node.node, scope), node.lineno
        if isinstance(node.arg, nodes.Slice):
            bounds = [one and self.build(one, scope) for one in (node.arg.start, node.arg.stop, node.arg.step)]

            def cut(at: Frame) -> Any:
                value = target(at)
                part = slice(*(bound and bound(at) for bound in bounds))
                at.sandbox.meter.step(line)
                return at.sandbox.meter.made(value[part])

            return cut
        index = self.build(node.arg, scope)

        def evaluate(at: Frame) -> Any:
            value, argument = target(at), index(at)
            at.sandbox.meter.step(line)
            return at.sandbox.getitem(value, argument)

        return evaluate

    def build_Slice(self, node: nodes.Slice, scope: Scope) -> Code:
        raise TemplateAssertionError("a slice must stand alone in its brackets", node.lineno)

    def build_Call(self, node: nodes.Call, scope: Scope) -> Code:
        target, line, arguments = self.build(node.node, scope), node.lineno, self.arguments(node, scope)
        name = node.node.name if isinstance(node.node, nodes.Name) else ""

        def evaluate(at: Frame) -> Any:
            function = target(at)
            args, kwargs = arguments(at)
            at.sandbox.meter.step(line)
            if name and isinstance(function, Undefined):
                raise Refused(f"unknown function: {name!r} is undefined")
            return at.sandbox.invoke(function, args, kwargs)

        return evaluate

    def build_ExtensionAttribute(self, node: nodes.ExtensionAttribute, scope: Scope) -> Code:
        value = getattr(self.sandbox.extensions[node.identifier], node.name)
        return lambda at: value

    def arguments(
        self, node: nodes.Call | nodes.Filter | nodes.Test, scope: Scope
    ) -> Callable[[Frame], tuple[list[Any], dict[str, Any]]]:
        """The positional and keyword arguments of a call, as Python passes them."""
        positional = [self.build(one, scope) for one in node.args]
        keywords = [(str(one.key), self.build(one.value, scope)) for one in node.kwargs]
        if len({key for key, _ in keywords}) < len(keywords):
            raise TemplateAssertionError("keyword argument repeated", node.lineno)
        more = node.dyn_args and self.build(node.dyn_args, scope)
        named = node.dyn_kwargs and self.build(node.dyn_kwargs, scope)

        def evaluate(at: Frame) -> tuple[list[Any], dict[str, Any]]:
            args = [one(at) for one in positional]
            kwargs: dict[str, Any] = {key: value(at) for key, value in keywords}
            if more:
                args.extend(at.sandbox.meter.items(more(at)))
            if named:
                extra = named(at)
                if not isinstance(extra, Mapping):
                    raise TypeError(f"argument after ** must be a mapping, not {type(extra).__name__}")
                if twice := kwargs.keys() & extra.keys():
                    raise TypeError(f"got multiple values for keyword argument {min(twice)!r}")
                kwargs.update(extra)
            return args, kwargs

        return evaluate

    def build_Filter(self, node: nodes.Filter, scope: Scope, block: Code | None = None) -> Code:
        """A filter; `block` gives what the innermost filter of a filter block is applied to."""
        if node.node is None:
            assert block is not None
            target = block
        elif isinstance(node.node, nodes.Filter):
            target = self.build_Filter(node.node, scope, block)
        else:
            target = self.build(node.node, scope)
        return self._applied(node, scope, target, Sandbox.call_filter, self.sandbox.filters, "filter")

    def build_Test(self, node: nodes.Test, scope: Scope) -> Code:
        return self._applied(node, scope, self.build(node.node, scope), Sandbox.call_test, self.sandbox.tests, "test")

    def _applied(
        self,
        node: nodes.Filter | nodes.Test,
        scope: Scope,
        target: Code,
        call: Callable[..., Any],
        known: Mapping[str, Any],
        kind: str,
    ) -> Code:
        name, line, arguments = node.name, node.lineno, self.arguments(node, scope)
        if name not in known and not scope.soft:
            raise TemplateAssertionError(f"No {kind} named {name!r}.", line)

        def evaluate(at: Frame) -> Any:
            value = target(at)
            args, kwargs = arguments(at)
            at.sandbox.meter.step(line)
            return call(at.sandbox, name, value, args, kwargs, context=at.context)

        return evaluate
