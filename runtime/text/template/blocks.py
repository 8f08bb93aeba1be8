"""What has an output of its own: macros, the bodies of call, filter, set and block tags, and the whole template."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from jinja2 import nodes
from jinja2.compiler import find_undeclared
from jinja2.exceptions import TemplateAssertionError, TemplateRuntimeError
from jinja2.idtracking import Symbols
from jinja2.runtime import Macro
from jinja2.utils import missing

from .frames import Code, Frame, Scope, variable
from .meter import Refused
from .statements import Statement, Statements


class Blocks(Statements):
    """Builds the function of a template."""

    def template(self, node: nodes.Template) -> Statement:
        self._blocks: dict[str, tuple[Statement, bool]] = {}
        if "self" in find_undeclared(node.body, ("self",)):
            raise Refused("the variable self")
        found = list(node.find_all(nodes.Block))
        for block in found:
            if [one.name for one in found].count(block.name) > 1:
                raise TemplateAssertionError(f"block {block.name!r} defined twice", block.lineno)
        scope = Scope(Symbols(level=0), toplevel=True)
        scope.symbols.analyze_node(node)
        enter, body = self.enter(scope), self.body(node.body, scope)
        for block in found:
            inside = Scope(Symbols(level=0))
            inside.symbols.analyze_node(block)
            self._blocks[block.name] = (_both(self.enter(inside), self.body(block.body, inside)), block.required)
        return _both(enter, body)

    def _macro(self, node: nodes.Macro | nodes.CallBlock, scope: Scope) -> Callable[[Frame], Macro]:
        inside = scope.inner(function=True)
        symbols = inside.symbols
        symbols.analyze_node(node)
        names = [one.name for one in node.args]
        idents = [symbols.ref(name) for name in names]
        wanted = find_undeclared(node.body, ("caller", "kwargs", "varargs"))
        if "caller" in wanted and "caller" in names and names.index("caller") < len(names) - len(node.defaults):
            found = 'the special "caller" argument must be omitted or be given a default'
            raise TemplateAssertionError(f"When defining macros or call blocks {found}.", node.lineno)
        special = [name for name in ("caller", "kwargs", "varargs") if name in wanted and name not in names]
        idents += [symbols.declare_parameter(name) for name in special]
        symbols.analyze_node(node)
        enter, body, line = self.enter(inside), self.body(node.body, inside), node.lineno
        without = len(names) - len(node.defaults)
        defaults = []
        for index, default in enumerate(node.defaults, without):
            self.unstored = frozenset(idents[index:])
            defaults.append(self.build(default, inside))
        self.unstored = frozenset()

        def make(at: Frame) -> Macro:
            def call(*arguments: Any) -> str:
                frame = at.inner()
                frame.values.update(zip(idents, arguments, strict=True))
                enter(frame)
                at.sandbox.meter.step(line)
                for index, name in enumerate(names):
                    if frame.values[idents[index]] is missing:
                        hint = f"parameter {name!r} was not provided"
                        frame.values[idents[index]] = (
                            at.sandbox.undefined(hint, name=name)
                            if index < without
                            else defaults[index - without](frame)
                        )
                body(frame)
                return at.sandbox.meter.made("".join(frame.out))

            name = getattr(node, "name", None)
            options = ("kwargs" in special, "varargs" in special, "caller" in wanted)
            return Macro(at.sandbox, call, name, tuple(names), *options, False)  # type: ignore[arg-type]

        return make

    def build_Macro(self, node: nodes.Macro, scope: Scope) -> Statement:
        make, store = self._macro(node, scope), self.store(nodes.Name(node.name, "store"), scope)
        return lambda at: store(at, make(at))

    def build_CallBlock(self, node: nodes.CallBlock, scope: Scope) -> Statement:
        make, target, line = self._macro(node, scope), self.build(node.call.node, scope), node.lineno
        arguments = self.arguments(node.call, scope)

        def write(at: Frame) -> None:
            caller, function = make(at), target(at)
            args, kwargs = arguments(at)
            at.sandbox.meter.step(line)
            if "caller" in kwargs:
                raise TypeError("got multiple values for keyword argument 'caller'")
            _write(at, at.sandbox.invoke(function, args, {**kwargs, "caller": caller}))

        return write

    def _captured(self, body: Sequence[nodes.Node], scope: Scope, use: Callable[[Frame, str], None]) -> Statement:
        """Runs a body, and hands its text to `use` instead of writing it."""
        enter, inner, leave = self.enter(scope), self.body(body, scope), self.leave(scope)

        def run(at: Frame) -> str | None:
            enter(at)
            outer, at.out = at.out, []
            signal = inner(at)
            text, at.out = "".join(at.out), outer
            if signal is None:
                use(at, at.sandbox.meter.made(text))
                leave(at)
            return signal

        return run

    def build_FilterBlock(self, node: nodes.FilterBlock, scope: Scope) -> Statement:
        inside = scope.inner()
        inside.symbols.analyze_node(node)
        apply = self._filtered(node.filter, inside)
        return self._captured(node.body, inside, lambda at, text: _write(at, apply(at, text)))

    def build_AssignBlock(self, node: nodes.AssignBlock, scope: Scope) -> Statement:
        inside = scope.inner()
        inside.symbols.analyze_node(node)
        apply, store = self._filtered(node.filter, inside), self.store(node.target, scope)
        return self._captured(node.body, inside, lambda at, text: store(at, apply(at, text)))

    def _filtered(self, node: nodes.Filter | None, scope: Scope) -> Callable[[Frame, str], Any]:
        if node is None:
            return lambda at, text: text
        code: Code = self.build_Filter(node, scope, lambda at: at.values["block"])

        def apply(at: Frame, text: str) -> Any:
            at.values["block"] = text
            return code(at)

        return apply

    def build_Block(self, node: nodes.Block, scope: Scope) -> Statement:
        name, line = node.name, node.lineno
        visible = [(one, ident, scope.hops(ident)) for one, ident in scope.symbols.dump_stores().items()]

        def write(at: Frame) -> None:
            at.sandbox.meter.step(line)
            run, required = self._blocks[name]
            if required:
                raise TemplateRuntimeError(f"Required block {name!r} not found")
            context = at.context
            if node.scoped:
                context = context.derived({one: variable(at, ident, hops) for one, ident, hops in visible})
            frame = Frame(at.sandbox, context)
            frame.out = at.out
            run(frame)

        return write

    def _refused(self, node: nodes.Node, scope: Scope) -> Statement:
        name, line = type(node).__name__.lower().replace("fromimport", "from"), node.lineno
        found = f"{name}: a chat template has no other files"
        if isinstance(node, nodes.Scope):
            found, line = "autoescape", node.body[0].lineno

        def refuse(at: Frame) -> None:
            at.sandbox.meter.step(line)
            raise Refused(f"the tag {found}")

        return refuse

    build_Include = build_Import = build_FromImport = build_Extends = build_Scope = _refused


def _write(at: Frame, value: Any) -> None:
    """Writes what a call or filter block gave: Jinja2 joins it with the other texts as it is."""
    if not isinstance(value, str):
        raise TypeError(f"expected str instance, {type(value).__name__} found")
    at.out.append(at.sandbox.meter.made(value))


def _both(enter: Statement, body: Statement) -> Statement:
    def run(at: Frame) -> str | None:
        enter(at)
        return body(at)

    return run
