"""Weight bindings: every operation against numpy, hostile JSON is an EngineError."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llmc.runtime.engine_file.bind import (
    MAX_DEPTH,
    Concat,
    E2M1ToNbits8,
    Expr,
    Reshape,
    Slice,
    Stored,
    Times,
    ToF32,
    evaluate_weight,
    from_json,
    stored,
    to_json,
)
from llmc.runtime.errors import EngineError, ResourceError
from llmc.runtime.files import strict_json
from llmc.runtime.numbers import E2M1, RAW_DTYPE

RNG = np.random.default_rng(0)
W = RNG.normal(size=(4, 6)).astype(np.float32)
TENSORS: dict[str, np.ndarray] = {
    "w": W,
    "v": RNG.normal(size=(2, 6)).astype(np.float32),
    "scale": RNG.random(4).astype(np.float32) + 0.5,
    "global": np.array(0.25, np.float32),
    "bf16": W.astype(ml_dtypes.bfloat16).view(np.uint16),
    "fp16": W.astype(np.float16),
    "fp8": W.astype(ml_dtypes.float8_e4m3fn).view(np.uint8),
    "e8m0": np.arange(120, 132, dtype=np.uint8).reshape(4, 3),
    "codes": RNG.integers(0, 256, (4, 6), dtype=np.uint8),
    "one": np.array(0x3F80, np.uint16),
}
DTYPES = {"bf16": "BF16", "fp16": "F16", "fp8": "F8_E4M3", "e8m0": "F8_E8M0", "codes": "U8", "one": "BF16"}


def leaf(name: str) -> Stored:
    return Stored(name, DTYPES.get(name, "F32"), TENSORS[name].shape)


def value(expr: Expr) -> np.ndarray:
    """Evaluated over read-only tensors, as those of a mapped engine are; checked against the expression's own type."""
    found = evaluate_weight(expr, lambda name: frozen(TENSORS[name]), initializer="x")
    assert found.shape == expr.shape and found.dtype == RAW_DTYPE[expr.dtype]
    return found


def frozen(array: np.ndarray) -> np.ndarray:
    view = array.view()
    view.flags.writeable = False
    return view


FP8 = TENSORS["fp8"].view(ml_dtypes.float8_e4m3fn).astype(np.float32)
NIBBLES = np.stack([TENSORS["codes"] & 15, TENSORS["codes"] >> 4], axis=-1).reshape(4, 12)
OPERATIONS: dict[str, tuple[Expr, np.ndarray]] = {
    "stored": (leaf("w"), W),
    "stored scalar": (leaf("global"), TENSORS["global"]),
    "slice of rows": (Slice(leaf("w"), 0, 1, 3), W[1:3]),
    "slice of columns": (Slice(leaf("w"), 1, 2, 6), W[:, 2:6]),
    "slice of nothing": (Slice(leaf("w"), 1, 6, 6), W[:, 6:]),
    "concat of rows": (Concat((leaf("w"), leaf("v"), leaf("w")), 0), np.concatenate([W, TENSORS["v"], W])),
    "concat of columns": (Concat((leaf("w"), Slice(leaf("w"), 1, 0, 2)), 1), np.concatenate([W, W[:, :2]], 1)),
    "reshape": (Reshape(leaf("w"), (2, 1, 12)), W.reshape(2, 1, 12)),
    "reshape of columns": (Reshape(Slice(leaf("w"), 1, 0, 3), (12,)), W[:, :3].reshape(-1)),
    "reshape of a scalar": (Reshape(leaf("global"), (1,)), np.array([0.25], np.float32)),
    "bf16": (ToF32(leaf("bf16")), TENSORS["bf16"].view(ml_dtypes.bfloat16).astype(np.float32)),
    "bf16 scalar": (ToF32(leaf("one")), np.array(1, np.float32)),
    "fp16": (ToF32(leaf("fp16")), TENSORS["fp16"].astype(np.float32)),
    "fp8": (ToF32(leaf("fp8")), FP8),
    "e8m0, halved": (ToF32(leaf("e8m0"), 0.5), np.exp2(TENSORS["e8m0"].astype(np.float32) - 128)),
    "scalar, doubled": (ToF32(leaf("global"), 2.0), np.array(0.5, np.float32)),
    "times rows": (Times(leaf("w"), leaf("scale")), W * TENSORS["scale"][:, None]),
    "times a scalar": (Times(leaf("w"), Reshape(leaf("global"), (1,))), W * 0.25),
    "times itself": (Times(leaf("w"), leaf("w")), W * W),
    "fp8 by channel": (Times(ToF32(leaf("fp8")), leaf("scale")), FP8 * TENSORS["scale"][:, None]),
    "e2m1": (E2M1ToNbits8(leaf("codes")), (128 + 2 * E2M1[NIBBLES]).astype(np.uint8)),
    "nested": (
        Reshape(E2M1ToNbits8(Concat((leaf("codes"), Slice(leaf("codes"), 0, 0, 2)), 0)), (6, 2, 6)),
        (128 + 2 * E2M1[np.concatenate([NIBBLES, NIBBLES[:2]])]).astype(np.uint8).reshape(6, 2, 6),
    ),
}


@pytest.mark.parametrize("name", OPERATIONS)
def test_an_operation_is_numpys(name: str) -> None:
    expr, expected = OPERATIONS[name]
    found = value(expr)
    assert isinstance(found, np.ndarray) and found.shape == expected.shape
    np.testing.assert_array_equal(found, expected)
    assert {part.name for part in stored(expr)} <= TENSORS.keys()


@pytest.mark.parametrize("name", OPERATIONS)
def test_tensors_stay_as_they_are(name: str) -> None:
    """Products are computed in place where that is safe: never in an array that somebody else holds."""
    own = {key: array.copy() for key, array in TENSORS.items()}
    evaluate_weight(OPERATIONS[name][0], own.__getitem__, initializer="x")
    for key, array in own.items():
        np.testing.assert_array_equal(array, TENSORS[key])


# --- JSON ---


def _leaves(dtypes: tuple[str, ...]) -> st.SearchStrategy[Expr]:
    shapes = st.lists(st.integers(0, 5), max_size=3).map(tuple)
    return st.builds(Stored, st.text(max_size=8), st.sampled_from(dtypes), shapes)


def _grow(inner: st.SearchStrategy[Expr]) -> st.SearchStrategy[Expr]:
    finite = st.floats(allow_nan=False, allow_infinity=False, width=32)
    return st.one_of(
        st.builds(ToF32, inner, finite),
        inner.map(lambda e: Reshape(e, (math.prod(e.shape), 1))),
        inner.map(lambda e: Reshape(e, (*e.shape, 1))),
        inner.map(lambda e: Times(ToF32(e), ToF32(e, 0.5))),
        inner.filter(lambda e: len(e.shape) > 0).map(lambda e: Concat((e, e), len(e.shape) - 1)),
        inner.filter(lambda e: e.dtype == "U8" and len(e.shape) > 0).map(E2M1ToNbits8),
    )


@st.composite
def _slices(draw: st.DrawFn) -> Expr:
    of = draw(_leaves(tuple(RAW_DTYPE)).filter(lambda e: len(e.shape) > 0))
    axis = draw(st.integers(0, len(of.shape) - 1))
    start = draw(st.integers(0, of.shape[axis]))
    return Slice(of, axis, start, draw(st.integers(start, of.shape[axis])))  # type: ignore[arg-type]


EXPRESSIONS = st.recursive(_leaves(("F32", "BF16", "F16", "F8_E4M3", "U8")) | _slices(), _grow, max_leaves=6)


def _depth(data: Any) -> int:
    inner = [data[key] for key in ("of", "by") if key in data] + data.get("parts", [])
    return max((1 + _depth(part) for part in inner), default=0)


@settings(max_examples=150, deadline=None)
@given(EXPRESSIONS)
def test_an_expression_survives_json(expr: Expr) -> None:
    data = to_json(expr)
    text = strict_json.canonical(data)
    again = strict_json.loads(text, what="binding", error=EngineError)
    if _depth(data) > MAX_DEPTH:
        with pytest.raises(EngineError, match="depth"):
            from_json(again)
        return
    assert from_json(again) == expr
    assert strict_json.canonical(to_json(from_json(again))) == text


@settings(max_examples=120, deadline=None)
@given(EXPRESSIONS, st.randoms(use_true_random=False))
def test_an_expressions_type_is_its_values(expr: Expr, random: Any) -> None:
    tensors = {part.name: part for part in stored(expr)}

    def fetch(name: str) -> np.ndarray:
        part = tensors[name]
        raw = random.randbytes(math.prod(part.shape) * RAW_DTYPE[part.dtype].itemsize)
        return np.frombuffer(raw, RAW_DTYPE[part.dtype]).reshape(part.shape)

    if any(tensors[part.name] != part for part in stored(expr)):
        return  # one name, two types: refused, see below
    with np.errstate(all="ignore"):
        found = evaluate_weight(expr, fetch, initializer="x")
    assert found.shape == expr.shape and found.dtype == RAW_DTYPE[expr.dtype]


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=6),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=6), inner, max_size=3),
    max_leaves=8,
)
KEYS = ("op", "of", "by", "parts", "axis", "shape", "start", "stop", "name", "dtype", "factor", "nonsense")
OPS = ("stored", "slice", "concat", "reshape", "to_f32", "times", "e2m1_to_nbits8", "view")


@st.composite
def _almost(draw: st.DrawFn) -> Any:
    """A sound expression's JSON with some values anywhere in it replaced, removed or added."""
    data = to_json(draw(EXPRESSIONS))
    for _ in range(draw(st.integers(1, 3))):
        place = data
        while True:
            inner = [place[key] for key in ("of", "by") if isinstance(place.get(key), dict)]
            inner += [part for part in place.get("parts") or [] if isinstance(part, dict)] if "parts" in place else []
            if not inner or draw(st.booleans()):
                break
            place = draw(st.sampled_from(inner))
        key = draw(st.sampled_from([*place, *KEYS]))
        if draw(st.booleans()):
            place.pop(key, None)
        else:
            place[key] = draw(JSON | st.integers(-1, 9) | st.sampled_from(OPS) | st.sampled_from(tuple(RAW_DTYPE)))
            if key == "parts" and not isinstance(place[key], list):
                place.pop(key)
    return data


@settings(max_examples=250, deadline=None)
@given(JSON | _almost())
def test_malformed_json_is_an_engine_error(data: Any) -> None:
    """Either it is refused, or it is an expression whose type can be asked for and that survives the way back."""
    try:
        expr = from_json(data)
    except EngineError:
        return
    assert math.prod(expr.shape) >= 0 and expr.dtype in RAW_DTYPE
    assert from_json(to_json(expr)) == expr


def _wrap(count: int) -> dict[str, Any]:
    data = to_json(leaf("w"))
    for _ in range(count):
        data = {"op": "reshape", "of": data, "shape": [4, 6]}
    return data


def test_nesting_has_an_end() -> None:
    assert from_json(_wrap(MAX_DEPTH)).shape == (4, 6)
    for count in (MAX_DEPTH + 1, 50_000):
        with pytest.raises(
            EngineError, match=f"cannot read a weight expression\n  found: dict at depth {MAX_DEPTH + 1}"
        ):
            from_json(_wrap(count))


LEAF = {"op": "stored", "name": "w", "dtype": "F32", "shape": [4, 6]}
CODES = {"op": "stored", "name": "codes", "dtype": "U8", "shape": [4, 6]}
HUGE = {"op": "stored", "name": "w", "dtype": "F32", "shape": [2**47, 2**47]}
REFUSED: dict[str, tuple[Any, str]] = {
    "no object": ([LEAF], "list at depth 0"),
    "no operation": ({"name": "w"}, "operation None"),
    "an unknown operation": ({"op": "to_f23", "of": LEAF}, r"operation 'to_f23' \(did you mean 'to_f32'\?\)"),
    "an operation that is a list": ({"op": ["stored"]}, "operation"),
    "an unknown field": ({"op": "reshape", "off": LEAF}, r"unknown field 'off' \(did you mean 'of'\?\)"),
    "a missing field": ({"op": "stored", "name": "w", "dtype": "F32"}, "no field 'shape'"),
    "an unknown dtype": ({**LEAF, "dtype": "F31"}, "unknown dtype 'F31'"),
    "a negative size": ({**LEAF, "shape": [-4, 6]}, "field 'shape'"),
    "a size beyond any file": ({**LEAF, "shape": [2**48]}, "field 'shape'"),
    "a size that is a truth value": ({**LEAF, "shape": [True]}, "field 'shape'"),
    "an infinite factor": ({"op": "to_f32", "of": LEAF, "factor": math.inf}, "field 'factor'"),
    "nothing to join": ({"op": "concat", "parts": [], "axis": 0}, "field 'parts'"),
    "an axis that is not there": ({"op": "concat", "parts": [LEAF], "axis": 2}, r"axis 2 of shape \[4, 6\]"),
    "parts of two dtypes": ({"op": "concat", "parts": [LEAF, CODES], "axis": 0}, "F32 joined with U8"),
    "parts of two widths": (
        {"op": "concat", "parts": [LEAF, {**LEAF, "shape": [4, 5]}], "axis": 0},
        r"\[4, 6\] joined with \[4, 5\] along axis 0",
    ),
    "a slice beyond the end": ({"op": "slice", "of": LEAF, "axis": 0, "start": 1, "stop": 5}, "elements 1 to 5 of 4"),
    "a slice backwards": ({"op": "slice", "of": LEAF, "axis": 0, "start": 3, "stop": 1}, "elements 3 to 1 of 4"),
    "a slice along no axis": ({"op": "slice", "of": LEAF, "axis": 2, "start": 0, "stop": 0}, "axis 2 of shape"),
    "a small slice of something large": (
        {"op": "slice", "of": {"op": "concat", "parts": [LEAF] * 99, "axis": 0}, "axis": 0, "start": 0, "stop": 1},
        "a slice of concat: only stored tensors are cut",
    ),
    "other elements": ({"op": "reshape", "of": LEAF, "shape": [5, 5]}, r"shape \[4, 6\] as \[5, 5\]"),
    "a product that overflows 64 bits": ({"op": "reshape", "of": HUGE, "shape": [0]}, "as"),
    "codes that are no bytes": ({"op": "e2m1_to_nbits8", "of": LEAF}, "codes F32"),
    "codes without a row": ({"op": "e2m1_to_nbits8", "of": {**CODES, "shape": []}}, "codes U8"),
    "a product of bytes": ({"op": "times", "of": CODES, "by": LEAF}, "U8 times F32"),
    "a scale that does not fit": ({"op": "times", "of": LEAF, "by": {**LEAF, "shape": [6]}}, r"\[4, 6\] times \[6\]"),
    "a scale with more axes": ({"op": "times", "of": {**LEAF, "shape": [4]}, "by": LEAF}, r"\[4\] times \[4, 6\]"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_refused(name: str) -> None:
    data, message = REFUSED[name]
    with pytest.raises(EngineError, match=f"(?s)cannot read a weight expression.*{message}"):
        from_json(data)


# --- evaluation against what is stored ---


@pytest.mark.parametrize("wrap", [lambda e: e, ToF32, lambda e: Concat((e, e), 0)])
@pytest.mark.parametrize(
    ("found", "shown"),
    [
        (np.zeros((4, 5), np.float32), r"float32 of shape \[4, 5\]"),
        (np.zeros((24,), np.float32), r"float32 of shape \[24\]"),
        (np.zeros((4, 6), np.uint16), r"uint16 of shape \[4, 6\]"),
    ],
)
def test_another_tensor_than_promised_names_the_initializer(
    wrap: Callable[[Expr], Expr], found: np.ndarray, shown: str
) -> None:
    message = rf"expected tensor 'w' as F32 of shape \[4, 6\] for weight 'model\.x'\n  found: {shown}"
    with pytest.raises(EngineError, match=message):
        evaluate_weight(wrap(leaf("w")), lambda _: found, initializer="model.x")


def test_a_weight_beyond_all_memory_is_a_resource_error() -> None:
    row = np.broadcast_to(np.zeros(1, np.float32), (2**40,))
    expr = Concat((Stored("row", "F32", (2**40,)),) * 64, 0)
    with pytest.raises(ResourceError, match=rf"cannot evaluate weight 'x' of {2**48} bytes"):
        evaluate_weight(expr, lambda _: row, initializer="x")


def test_a_shape_that_numpy_does_not_know_is_refused() -> None:
    """Each is sound by the count of its elements, so that only evaluation can tell."""
    empty = Slice(leaf("w"), 0, 0, 0)
    for expr in (Reshape(leaf("w"), (1,) * 100 + (24,)), Reshape(empty, (0, 1 << 47, 1 << 47))):
        with pytest.raises(EngineError, match=r"weight 'x'\n  found: .*(dimension|too big)"):
            evaluate_weight(expr, TENSORS.__getitem__, initializer="x")
