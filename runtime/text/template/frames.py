"""Where the variables of a template live: the scopes known when it is built, the frames in which it runs."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

from jinja2.exceptions import TemplateRuntimeError
from jinja2.idtracking import Symbols
from jinja2.runtime import Context
from jinja2.utils import Namespace, missing

from .sandbox import Sandbox


class Frame:
    """The variables of one function (the template, a macro, a recursive loop) while it runs.

    Jinja2 makes Python functions of a template, and `Symbols` names their variables; `parent` is the function around.
    """

    __slots__ = ("context", "out", "parent", "sandbox", "values")

    def __init__(self, sandbox: Sandbox, context: Context, parent: Frame | None = None) -> None:
        self.sandbox, self.context, self.parent = sandbox, context, parent
        self.values: dict[str, Any] = {}
        self.out: list[str] = []

    def inner(self) -> Frame:
        return Frame(self.sandbox, self.context, self)


Code = Callable[[Frame], Any]
Store = Callable[[Frame, Any], None]


@dataclass(frozen=True)
class Scope:
    """What is known of the names at one place of a template, as in `jinja2.compiler.Frame`."""

    symbols: Symbols
    owners: tuple[int, ...] = (0,)
    """The function that each level of symbols belongs to, counted from the outermost."""
    toplevel: bool = False
    soft: bool = False
    """Inside an `if`: an unknown filter is an error only where it is used."""
    loop: bool = False
    """`break` and `continue` have a loop."""

    def inner(self, *, function: bool = False, loop: bool = False) -> Scope:
        owners = (*self.owners, self.owners[-1] + function)
        return Scope(Symbols(self.symbols), owners, loop=loop or (self.loop and not function))

    def softened(self) -> Scope:
        return replace(self, soft=True)

    def hops(self, ident: str) -> int:
        """How many functions out the variable `ident` ("l_LEVEL_NAME") lives."""
        return self.owners[-1] - self.owners[int(ident.split("_", 2)[1])]


def variable(at: Frame, ident: str, hops: int) -> Any:
    """The value of a variable that lives `hops` functions out; `missing` if it has none."""
    for _ in range(hops):
        assert at.parent is not None
        at = at.parent
    return at.values.get(ident, missing)


def check_namespace(value: Any) -> None:
    if not isinstance(value, Namespace):
        raise TemplateRuntimeError("cannot assign attribute on non-namespace object")
