"""The first line of an error says that something failed: `cannot <verb> <thing>` or `expected <thing>`."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest
from support.paths import PACKAGE, ROOT

import llmc.runtime.errors as errors

CLASSES = {name for name, one in vars(errors).items() if isinstance(one, type) and issubclass(one, errors.LlmcError)}
STARTS = ("cannot ", "expected ")
FILES = [path for folder in PACKAGE for path in (ROOT / folder).rglob("*.py")]


def beginnings(text: ast.expr) -> Iterator[str | None]:
    """The first literal part of every text that an expression can be; None where it is computed elsewhere."""
    match text:
        case ast.Constant(value=str(value)) | ast.JoinedStr(values=[ast.Constant(value=str(value)), *_]):
            yield value
        case ast.JoinedStr():
            yield ""
        case ast.IfExp(body=one, orelse=other):
            yield from (*beginnings(one), *beginnings(other))
        case ast.BinOp(op=ast.Add(), left=left):
            yield from beginnings(left)
        case _:
            yield None


def raised(path: Path) -> Iterator[tuple[int, str | None]]:
    """Line and first literal of every error that a file makes. `error` is a class given to a function."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    for node in ast.walk(tree):
        name = node.func.id if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) else ""
        if isinstance(node, ast.Call) and node.args and (name in CLASSES or name == "error"):
            yield from ((node.lineno, start) for start in beginnings(node.args[0]))


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_the_first_line_says_that_something_failed(path: Path):
    wrong = [(line, start) for line, start in raised(path) if start is not None and not start.startswith(STARTS)]
    assert wrong == []


def test_the_check_finds_both_kinds_and_every_branch(tmp_path: Path):
    file = tmp_path / "x.py"
    file.write_text(
        'RecipeError("a" if x else f"expected {b}")\nerror(f"{what}: no")\nEngineError(text)\nprint("no")\n'
    )
    assert [*raised(file)] == [(1, "a"), (1, "expected "), (2, ""), (3, None)]
    assert sum(1 for path in FILES for _ in raised(path)) > 200
