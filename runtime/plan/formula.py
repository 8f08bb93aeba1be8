"""Whole-number formulas over a step's sizes ("cdiv(tokens, 64) * 8"): the grids, buffer sizes and costs of a plan."""

from __future__ import annotations

import ast
from collections.abc import Callable, Mapping
from functools import cache

from ..errors import EngineError

SIZES = ("tokens", "sequences", "rows")
"""New tokens of the step, sequences they belong to, positions whose logits are wanted."""
_MAX_LENGTH = 400
_MAX_VALUE = 1 << 62
_FUNCTIONS: Mapping[str, tuple[int, Callable[..., int]]] = {
    "cdiv": (2, lambda a, b: -(-a // b)),
    "min": (2, min),
    "max": (2, max),
}
_OPERATORS: Mapping[type[ast.operator], Callable[[int, int], int]] = {
    ast.Add: lambda a, b: a + b,
    ast.Sub: lambda a, b: a - b,
    ast.Mult: lambda a, b: a * b,
    ast.FloorDiv: lambda a, b: a // b,
}


def value(formula: str | int, sizes: Mapping[str, int]) -> int:
    """The formula's value, 0 or more.

    Allowed: whole numbers, the names in `sizes`, + - * //, parentheses, cdiv, min and max of two arguments.

    Raises:
        EngineError: anything else, division by zero, or a value below 0 or above 2^62.
    """
    if isinstance(formula, int):
        return formula
    try:
        result = _evaluate(_parse(formula), sizes)
    except (ZeroDivisionError, KeyError, RecursionError) as error:
        raise _refusal(formula, f"{type(error).__name__} {error}") from None
    if not 0 <= result <= _MAX_VALUE:
        raise _refusal(formula, f"the value {result}")
    return result


@cache
def _parse(formula: str) -> ast.expr:
    if len(formula) > _MAX_LENGTH:
        raise _refusal(formula, f"{len(formula)} characters")
    try:
        tree = ast.parse(formula, mode="eval").body
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        raise _refusal(formula, "no expression") from None
    for node in ast.walk(tree):
        if not _allowed(node):
            raise _refusal(formula, type(node).__name__)
    return tree


def _allowed(node: ast.AST) -> bool:
    if isinstance(node, ast.Constant):
        return type(node.value) is int
    if isinstance(node, ast.BinOp):
        return type(node.op) in _OPERATORS
    if isinstance(node, ast.Call):
        known = _FUNCTIONS.get(node.func.id) if isinstance(node.func, ast.Name) else None
        return known is not None and len(node.args) == known[0] and not node.keywords
    return isinstance(node, (ast.Name, ast.Load, *_OPERATORS))


def _evaluate(node: ast.expr, sizes: Mapping[str, int]) -> int:
    match node:
        case ast.Constant(value=int(number)):
            return number
        case ast.Name(id=name):
            return sizes[name]
        case ast.BinOp(left=left, op=op, right=right):
            return _OPERATORS[type(op)](_evaluate(left, sizes), _evaluate(right, sizes))
        case ast.Call(func=ast.Name(id=name), args=args):
            return _FUNCTIONS[name][1](*(_evaluate(arg, sizes) for arg in args))
    raise AssertionError(f"{node} was not checked")


def _refusal(formula: str, found: str) -> EngineError:
    return EngineError(f"formula {formula[:80]!r} of the plan", found=found, fix="build the engine again")
