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


def test_experts_are_read_as_far_as_tokens_choose_them():
    """All of a token's experts, then more and more of them: 1 - (1 - 8 / 128)^tokens of 128000 bytes."""
    sizes = [0, 1, 2, 16, 256, 8192]
    assert [value("spread(128 * 1000, 128, 8, tokens)", {"tokens": tokens}) for tokens in sizes] == [
        *(0, 8000, 15500, 82423),
        *(128000, 128000),
    ]
    assert value("spread(77, 4, 4, rows)", SIZES) == 77


@pytest.mark.parametrize(
    "formula",
    [
        "",
        "tokens.real",
        "__import__('os')",
        "open('x')",
        "cdiv(1)",
        "cdiv(1, 0)",
        "spread(8, 4, 2)",
        "spread(8, 4, 0, 1)",
        "spread(8, 4, 5, 1)",
        "spread(8, 0, 1, 1)",
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
