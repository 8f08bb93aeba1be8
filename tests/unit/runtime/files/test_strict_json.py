"""Proves that the strict JSON reader takes what the standard reader takes, less the ambiguous and the bottomless."""

from __future__ import annotations

import json
import math
import tracemalloc
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmc.runtime.errors import CheckpointError, LlmcError, RecipeError, nearest
from llmc.runtime.files.strict_json import canonical, clipped, loads

VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=20,
)


def depth(value: object) -> int:
    if isinstance(value, dict):
        return 1 + max(map(depth, value.values()), default=0)
    return 1 + max(map(depth, value), default=0) if isinstance(value, list) else 0


def refusal(data: bytes | str, **limits: Any) -> str:
    with pytest.raises(CheckpointError) as caught:
        loads(data, what="config.json", error=CheckpointError, **limits)
    return str(caught.value)


@given(VALUES, st.booleans())
def test_agrees_with_the_standard_reader(value: object, ascii_only: bool) -> None:
    data = json.dumps(value, ensure_ascii=ascii_only)
    assert loads(data, what="x", error=RecipeError) == value
    assert loads(canonical(value), what="x", error=RecipeError) == value


@given(VALUES)
def test_depth_is_judged_exactly(value: object) -> None:
    levels = depth(value)
    assert loads(json.dumps(value), what="x", error=CheckpointError, max_depth=levels) == value
    if levels:
        assert "levels deep" in refusal(json.dumps(value), max_depth=levels - 1)


@given(st.binary() | st.text(alphabet='{}[]",:\\u0 1eE-+.\ud800tNa\n', max_size=60))
def test_only_the_given_error_comes_out(data: bytes | str) -> None:
    try:
        value = loads(data, what="x", error=CheckpointError)
    except CheckpointError:
        return
    assert json.loads(data) == value


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ('{"a": 1, "b": {"c": 1, "c": 2}}', "the key 'c' twice in one object"),
        ("[NaN]", "NaN, which is not a JSON number"),
        ("[-Infinity]", "-Infinity, which is not a JSON number"),
        ("[1e999]", "the number 1e999, which is too large"),
        ("[" + "1" * 309 + "]", f"the number {'1' * 40}..., which is too large"),
        ("[-" + "1" * 5000 + "]", f"the number -{'1' * 39}..., which is too large"),
        (b"\xef\xbb\xbf{}", "a byte order mark"),
        (b'"\xff"', "JSON in UTF-8 in "),
        ('"\ud800"', "a UTF-8 form"),
        (r'["\ud800"]', "lone surrogate"),
        ('{"a": }', "Expecting value at line 1 column 7"),
        ("", "Expecting value at line 1 column 1"),
        ("[[[", "at line 1 column 4"),
    ],
)
def test_refuses(data: bytes | str, message: str) -> None:
    text = refusal(data)
    assert text.startswith("expected ") and " in config.json\n  found: " in text
    assert message in text


def test_brackets_in_strings_are_not_nesting() -> None:
    value = ["[" * 100, '\\"[[[' * 50, "\\\\" * 3 + "{" * 99, {'"': ["[]"]}]
    assert loads(json.dumps(value), what="x", error=LlmcError) == value


@pytest.mark.parametrize("data", ["[" * 100_000, "[" * 100_000 + "]" * 100_000, '{"a":' * 100_000, "[{}," * 100_000])
def test_bottomless_nesting_is_refused_in_little_memory(data: str) -> None:
    tracemalloc.start()
    assert "nested at most 32 levels deep" in refusal(data)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 16 << 20


def test_size_and_count_are_refused_before_reading() -> None:
    assert "at most 10 bytes" in refusal("[" + " " * 9 + "]", max_bytes=10)
    assert loads("[" + " " * 8 + "]", what="x", error=LlmcError, max_bytes=10) == []
    assert "at most 100 values" in refusal("[" + "1," * 99 + "1]", max_values=100)
    assert "at most 100 values" in refusal('""' * 400, max_values=100)


def test_large_numbers_can_be_kept_for_who_judges_them() -> None:
    text = f'[{"9" * 308}, {"9" * 400}, {"9" * 5000}, -{"9" * 5000}, 1e400, -1e400, 1.5, "{"9" * 400}"]'
    found = loads(text, what="x", error=LlmcError, large=clipped)
    assert found == [int("9" * 308), int("9" * 400), 10**4299, -(10**4299), math.inf, -math.inf, 1.5, "9" * 400]
    assert json.dumps(found[:4])
    assert loads(f'{{"{"9" * 5000}": "{"9" * 5000}"}}', what="x", error=LlmcError), "digits in texts are no numbers"


def test_escaped_surrogate_pairs_are_text() -> None:
    assert loads(r'"\ud83d\ude00"', what="x", error=LlmcError) == "\U0001f600"


def test_canonical_is_one_spelling() -> None:
    assert canonical({"b": 1, "a": "é"}) == '{"a":"é","b":1}'.encode()
    with pytest.raises(ValueError):
        canonical(float("nan"))


def test_nearest_names_only_close_ones() -> None:
    assert nearest("hiden_size", ["hidden_size", "vocab_size"]) == " (did you mean 'hidden_size'?)"
    assert nearest("zzz", ["hidden_size"]) == ""


def test_a_hint_costs_little_whatever_the_names() -> None:
    assert nearest("a" * 5000, ["a" * 4999]) == "", "comparing is quadratic"
    assert nearest("w.weight", [f"w.{n}.weight" for n in range(100_000)]) == " (did you mean 'w.9.weight'?)"
    assert nearest("hiden_size", [*("x" * 60 for _ in range(10_000)), "hidden_size"]).endswith("'hidden_size'?)")
