"""Whole-number formulas over a step's sizes ("cdiv(tokens, 64) * 8"): the grids, buffer sizes and costs of a plan."""

from __future__ import annotations

import ast
import operator
from collections.abc import Callable, Mapping
from functools import cache

from ..errors import EngineError

SIZES = ("tokens", "sequences", "rows")
"""New tokens of the step, their sequences, and rows: positions whose logits are computed."""
_MAX_LENGTH = 400
_MAX_VALUE = 1 << 62
CheckedFormula = Callable[[Mapping[str, int]], int]
"""Maps a step's sizes to the value of a formula that has been checked."""
_FUNCTIONS: Mapping[str, Callable[[int, int], int]] = {"cdiv": lambda a, b: -(-a // b), "min": min, "max": max}
_OPERATORS: Mapping[type[ast.operator], Callable[[int, int], int]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.FloorDiv: operator.floordiv,
}


def expected_experts(experts: int, chosen: int, tokens: float) -> float:
    """The expected number of experts that some token chose, if each of `tokens` chooses `chosen` of all alike.

    Routers are not that even, and neighbouring tokens choose alike: so this is what can be said before a model runs.
    """
    return experts * (1.0 - (1.0 - chosen / experts) ** tokens)


def value(formula: str | int, sizes: Mapping[str, int]) -> int:
    """The formula's value, at least 0.

    Allowed: whole numbers, the names in `sizes`, + - * //, parentheses, cdiv, min and max of two arguments, and
    spread(bytes, experts, chosen, tokens): of the bytes of all experts, those of the experts that a step is expected to
    read (`expected_experts`).

    Raises:
        EngineError: the formula has anything else, a division by zero, or a value below 0 or above 2^62.
    """
    if isinstance(formula, int):
        return formula
    try:
        result = _parse(formula)(sizes)
    except (ZeroDivisionError, KeyError, RecursionError, ValueError, OverflowError) as error:
        raise _refusal(formula, f"{type(error).__name__} {error}") from None
    if not 0 <= result <= _MAX_VALUE:
        raise _refusal(formula, f"the value {result}")
    return result


@cache
def _parse(formula: str) -> CheckedFormula:
    if len(formula) > _MAX_LENGTH:
        raise _refusal(formula, f"{len(formula)} characters")
    try:
        return _compiled(ast.parse(formula, mode="eval").body, formula)
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        raise _refusal(formula, "no expression") from None


def _compiled(node: ast.expr, formula: str) -> CheckedFormula:
    """Compile a node; formulas may hold only what this function accepts."""
    match node:
        case ast.Constant(value=int(number)) if type(number) is int:
            return lambda _: number
        case ast.Name(id=name):
            return operator.itemgetter(name)
        case ast.BinOp(left=left, op=op, right=right) if type(op) in _OPERATORS:
            function = _OPERATORS[type(op)]
        case ast.Call(func=ast.Name(id=name), args=[left, right], keywords=[]) if name in _FUNCTIONS:
            function = _FUNCTIONS[name]
        case ast.Call(func=ast.Name(id="spread"), args=[_, _, _, _] as given, keywords=[]):
            parts = [_compiled(one, formula) for one in given]
            return lambda sizes: _spread(*(one(sizes) for one in parts))
        case _:
            raise _refusal(formula, type(node).__name__)
    one, other = _compiled(left, formula), _compiled(right, formula)
    return lambda sizes: function(one(sizes), other(sizes))


def _spread(nbytes: int, experts: int, chosen: int, tokens: int) -> int:
    if not 0 < chosen <= experts or tokens < 0:
        raise ValueError(f"{chosen} of {experts} experts for {tokens} tokens")
    return round(nbytes * expected_experts(experts, chosen, tokens) / experts)


def _refusal(formula: str, found: str) -> EngineError:
    return EngineError(
        f"cannot evaluate formula {formula[:80]!r} of the plan", found=found, fix="build the engine again"
    )
