"""Statements that write to the output around them, with the scopes that Jinja2's own analysis of names gives them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from itertools import islice
from typing import Any

from jinja2 import nodes
from jinja2.compiler import find_undeclared
from jinja2.exceptions import TemplateAssertionError
from jinja2.idtracking import VAR_LOAD_ALIAS, VAR_LOAD_PARAMETER, VAR_LOAD_RESOLVE
from jinja2.runtime import LoopContext
from jinja2.utils import missing

from .expressions import Expressions
from .frames import Frame, Scope, Store, check_namespace, variable

BREAK, CONTINUE = "break", "continue"
Statement = Callable[[Frame], str | None]
"""Writes to the frame; returns BREAK or CONTINUE if a loop is to end or go on."""


class Statements(Expressions):
    """Builds a template's function; the order of steps is that of the code that jinja2.compiler writes."""

    def body(self, statements: Iterable[nodes.Node], scope: Scope) -> Statement:
        built = [self.build(one, scope) for one in statements]

        def run(at: Frame) -> str | None:
            for one in built:
                if (signal := one(at)) is not None:
                    return signal
            return None

        return built[0] if len(built) == 1 else run

    def enter(self, scope: Scope) -> Statement:
        """Sets the variables of a scope to what they are before its first statement."""
        aliases, resolved, unset = [], [], []
        for ident, (action, source) in scope.symbols.loads.items():
            if action == VAR_LOAD_ALIAS:
                aliases.append((ident, source, scope.hops(source)))
            elif action == VAR_LOAD_RESOLVE:
                resolved.append((ident, source))
            elif action != VAR_LOAD_PARAMETER:
                unset.append(ident)

        def enter(at: Frame) -> None:
            for ident, source, hops in aliases:
                at.values[ident] = variable(at, source, hops)
            for ident, name in resolved:
                at.values[ident] = at.context.resolve_or_missing(name)
            for ident in unset:
                at.values[ident] = missing

        return enter

    @staticmethod
    def leave(scope: Scope) -> Statement:
        idents = tuple(scope.symbols.loads)
        return lambda at: at.values.update(dict.fromkeys(idents, missing))

    def store(self, target: nodes.Node, scope: Scope) -> Store:
        """Assigns to a name, to an attribute of a namespace, or to a tuple of these."""
        if isinstance(target, nodes.Name):
            name, ident = target.name, scope.symbols.ref(target.name)

            def set_name(at: Frame, value: Any) -> None:
                at.values[ident] = value
                if scope.toplevel:
                    at.context.vars[name] = value

            return set_name
        if isinstance(target, nodes.NSRef):
            name, ident = target.attr, scope.symbols.ref(target.name)
            hops = scope.hops(ident)

            def set_attribute(at: Frame, value: Any) -> None:
                check_namespace(namespace := variable(at, ident, hops))
                namespace[name] = value

            return set_attribute
        if not isinstance(target, nodes.Tuple):
            raise TemplateAssertionError(f"can't assign to {type(target).__name__.lower()}", target.lineno)
        parts = [self.store(one, scope) for one in target.items]

        def unpack(at: Frame, value: Any) -> None:
            values = list(islice(iter(value), len(parts) + 1))
            if len(values) != len(parts):
                many = "too many" if len(values) > len(parts) else "not enough"
                raise ValueError(f"{many} values to unpack (expected {len(parts)})")
            for part, one in zip(parts, values, strict=True):
                part(at, one)

        return unpack

    def build_Output(self, node: nodes.Output, scope: Scope) -> Statement:
        parts = [(self.build(one, scope), one.lineno) for one in node.nodes]

        def write(at: Frame) -> None:
            for part, line in parts:
                value = part(at)
                at.sandbox.meter.step(line)
                at.out.append(at.sandbox.meter.text(value))

        return write

    def build_If(self, node: nodes.If, scope: Scope) -> Statement:
        scope = scope.softened()
        branches = [(self.build(one.test, scope), self.body(one.body, scope)) for one in (node, *node.elif_)]
        otherwise = self.body(node.else_, scope)

        def choose(at: Frame) -> str | None:
            for test, body in branches:
                if test(at):
                    return body(at)
            return otherwise(at)

        return choose

    def build_For(self, node: nodes.For, scope: Scope) -> Statement:
        recursive = bool(node.recursive)
        inside, outside = scope.inner(function=recursive, loop=True), scope.inner(function=recursive)
        blocks = any(block.scoped for block in node.find_all(nodes.Block))
        extended = recursive or blocks or "loop" in find_undeclared(node.iter_child_nodes(only=("body",)), ("loop",))
        loop = inside.symbols.declare_parameter("loop") if extended else None
        inside.symbols.analyze_node(node, for_branch="body")
        if node.else_:
            outside.symbols.analyze_node(node, for_branch="else")
        for name in node.find_all(nodes.Name):
            if name.ctx == "store" and name.name == "loop":
                raise TemplateAssertionError("Can't assign to special loop variable in for-loop target", name.lineno)
        chosen = self._chosen(node, scope) if node.test else None
        target, line = self.store(node.target, inside), node.lineno
        enter, body, leave = self.enter(inside), self.body(node.body, inside), self.leave(inside)
        enter_else, otherwise, leave_else = (
            *(self.enter(outside), self.body(node.else_, outside)),
            self.leave(outside),
        )
        items = self.build(node.iter, scope)

        def run(at: Frame, values: Any, recurse: Callable[..., str] | None = None, depth: int = 0) -> str | None:
            values = values if chosen is None else chosen(at if not recursive else at.parent or at, values)
            steps: Iterable[Any] = values
            if loop is not None:
                at.values[loop] = missing
                steps = LoopContext(values, at.sandbox.undefined, recurse, depth)  # type: ignore[arg-type]
            empty = True
            for one in steps:
                at.sandbox.meter.step(line)
                target(at, one if loop is None else one[0])
                if loop is not None:
                    at.values[loop] = one[1]
                enter(at)
                signal = body(at)
                if signal == BREAK:
                    break
                # as in Jinja2, an iteration that ends with `continue` does not count
                empty = empty and signal == CONTINUE
            leave(at)
            if empty and node.else_:
                enter_else(at)
                signal = otherwise(at)
                leave_else(at)
                return signal
            return None

        if not recursive:
            return lambda at: run(at, items(at))

        def write(at: Frame) -> None:
            def render(values: Any, recurse: Callable[..., str], depth: int = 0) -> str:
                frame = at.inner()
                run(frame, values, recurse, depth)
                return at.sandbox.meter.made("".join(frame.out))

            at.out.append(render(items(at), render))

        return write

    def _chosen(self, node: nodes.For, scope: Scope) -> Callable[[Frame, Any], Iterator[Any]]:
        """The items of `for ... if`, chosen by a function of its own that sees no `loop`."""
        inside = scope.inner(function=True)
        inside.symbols.analyze_node(node, for_branch="test")
        assert node.test is not None
        enter, target, test = self.enter(inside), self.store(node.target, inside), self.build(node.test, inside)
        line = node.test.lineno

        def choose(at: Frame, values: Any) -> Iterator[Any]:
            frame = at.inner()
            enter(frame)
            for one in values:
                at.sandbox.meter.step(line)
                target(frame, one)
                if test(frame):
                    yield one

        return choose

    def build_Break(self, node: nodes.Break, scope: Scope) -> Statement:
        return self._jump(node, scope, BREAK)

    def build_Continue(self, node: nodes.Continue, scope: Scope) -> Statement:
        return self._jump(node, scope, CONTINUE)

    def _jump(self, node: nodes.Node, scope: Scope, signal: str) -> Statement:
        if not scope.loop:
            raise TemplateAssertionError(f"{signal!r} outside loop", node.lineno)
        return lambda at: signal

    def build_With(self, node: nodes.With, scope: Scope) -> Statement:
        inside = scope.inner()
        inside.symbols.analyze_node(node)
        pairs = [
            (self.store(target, inside), self.build(value, scope))
            for target, value in zip(node.targets, node.values, strict=True)
        ]
        enter, body, leave = self.enter(inside), self.body(node.body, inside), self.leave(inside)

        def run(at: Frame) -> str | None:
            enter(at)
            for store, value in pairs:
                store(at, value(at))
            signal = body(at)
            leave(at)
            return signal

        return run

    def build_Assign(self, node: nodes.Assign, scope: Scope) -> Statement:
        store, value = self.store(node.target, scope), self.build(node.node, scope)
        idents = [scope.symbols.ref(one.name) for one in node.target.find_all(nodes.NSRef)]
        if isinstance(node.target, nodes.NSRef):
            idents.append(scope.symbols.ref(node.target.name))
        spaces, line = [(ident, scope.hops(ident)) for ident in dict.fromkeys(idents)], node.lineno

        def assign(at: Frame) -> None:
            at.sandbox.meter.step(line)
            for ident, hops in spaces:
                check_namespace(variable(at, ident, hops))
            store(at, value(at))

        return assign
