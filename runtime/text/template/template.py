"""A template, parsed once and rendered many times; every failure becomes an error of llmc that names the line."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from jinja2 import nodes
from jinja2.exceptions import TemplateError, TemplateSyntaxError
from jinja2.runtime import Context

from ...errors import EngineError, LlmcError, RecipeError, Unsupported
from .blocks import Blocks
from .frames import Frame
from .meter import Exhausted, Meter, Refused
from .sandbox import MAX_MESSAGE, Sandbox

MAX_DEPTH = 150
"""Levels of a syntax tree. The code that Jinja2 would write may nest 200 brackets."""


class Template:
    """A compiled chat template; safe to render from many threads.

    Raises:
        Unsupported: the text is no template; names the line.
        EngineError: it nests too deep.
    """

    def __init__(self, source: str) -> None:
        self._sandbox = Sandbox()
        meter = Meter(0)
        with _errors("compile the chat template", meter):
            tree = self._sandbox.parse(source)
            _check_depth(tree, meter)
            self._run = Blocks(self._sandbox).template(tree)

    def render(self, variables: Mapping[str, Any], fuel: int) -> str:
        """The text.

        Raises:
            RecipeError: the template fails on these variables, or refuses them with its own message.
            EngineError: it needs more than its budget.
            Unsupported: it uses what does not exist here.
        """
        meter = Meter(fuel)
        sandbox = self._sandbox.paying(meter)
        frame = Frame(sandbox, Context(sandbox, {**sandbox.globals, **variables}, None, {}))
        with _errors("render the chat template", meter):
            self._run(frame)
        return "".join(frame.out)


def _check_depth(tree: nodes.Template, meter: Meter) -> None:
    level: list[nodes.Node] = [tree]
    for _ in range(MAX_DEPTH):
        level = [child for node in level for child in node.iter_child_nodes()]
    if level:
        meter.line = level[0].lineno
        raise Exhausted(f"the template nests deeper than {MAX_DEPTH} levels")


@contextmanager
def _errors(action: str, meter: Meter) -> Iterator[None]:
    """Turns every failure into an LlmcError that begins with "cannot `action`" and ends with the template's line."""
    try:
        yield
    except LlmcError:
        raise
    except TemplateSyntaxError as error:
        raise _error(Unsupported, action, f"syntax error: {error.message}", error.lineno) from None
    except Refused as error:
        raise _error(Unsupported, action, str(error), meter.line) from None
    except Exhausted as error:
        raise _error(EngineError, action, str(error), meter.line) from None
    except RecursionError:
        raise _error(EngineError, action, "the template nests or calls itself too deep", meter.line) from None
    except TemplateError as error:
        raise _error(RecipeError, action, str(error), meter.line) from None
    except (ArithmeticError, AssertionError, AttributeError, LookupError, TypeError, ValueError, RuntimeError) as error:
        # before it is rendered, a template has refused nothing
        kind = RecipeError if action.startswith("render") else Unsupported
        raise _error(kind, action, f"{type(error).__name__}: {error}", meter.line) from None


def _error(kind: type[LlmcError], action: str, found: str, line: int) -> LlmcError:
    found = found if len(found) <= MAX_MESSAGE else f"{found[:MAX_MESSAGE]}..."
    return kind(f"cannot {action}", found=f"{found} (line {line})")
