"""Formulas of a plan: whole numbers over the step's sizes and nothing else."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmc.runtime.errors import EngineError
from llmc.runtime.plan.formula import value

SIZES = {"tokens": 33, "sequences": 3, "rows": 2}


@given(st.integers(0, 10**6), st.integers(1, 10**4))
def test_cdiv_rounds_up(a: int, b: int):
    assert value(f"cdiv({a}, {b})", {}) == (a + b - 1) // b


def test_sizes_and_operators():
    assert value("cdiv(tokens, 16) * 8 + max(rows, sequences) - min(rows, 1)", SIZES) == 3 * 8 + 3 - 1
    assert value("(tokens + sequences) // 5", SIZES) == 7
    assert value(7, SIZES) == 7


@pytest.mark.parametrize(
    "formula",
    [
        "",
        "tokens.real",
        "__import__('os')",
        "open('x')",
        "cdiv(1)",
        "cdiv(1, 0)",
        "min(1, 2, 3)",
        "tokens / 2",
        "tokens ** 9",
        "tokens if rows else 1",
        "[1][0]",
        "'a' * 3",
        "True",
        "1.5",
        "slots",
        "rows - tokens",
        "99999999999 * 99999999999",
        "1 + " * 200 + "1",
        "lambda: 1",
        "tokens\n+ 1\n;",
        "cdiv(a=1, b=2)",
    ],
)
def test_anything_else_is_refused(formula: str):
    with pytest.raises(EngineError, match="of the plan"):
        value(formula, SIZES)
