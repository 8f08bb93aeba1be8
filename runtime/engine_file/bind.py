"""Weight expressions: they compute a profile's initializers from stored tensors, evaluated with numpy.

The compiler writes one expression (slice, concat, convert ...) per initializer; the runtime evaluates it over the
mapped engine. Expressions are values, typed by safetensors dtype names, and are stored as JSON in the manifest.
Arrays have the raw representation of `numbers.RAW_DTYPE` (bf16 as uint16, fp8 as uint8).

The constructors refuse inconsistent shapes and types with a ValueError, and no intermediate array is larger than the
result: memory planning counts all that a hostile manifest can allocate.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import MISSING, dataclass, fields
from itertools import accumulate, chain, pairwise
from typing import Any

import numpy as np

from ..errors import EngineError, ResourceError, nearest
from ..files.safetensors import TensorInfo
from ..numbers import RAW_DTYPE, to_f32

Fetch = Callable[[str], np.ndarray]
MAX_DEPTH = 8
"""Deepest nesting of an expression in a manifest."""
WEIGHTS_LOCATION = "engine"
"""The external file of weights in a graph; the runtime binds weights by name, independent of the engine's path."""


@dataclass(frozen=True)
class Stored:
    """A canonical tensor of the engine, by name."""

    name: str
    dtype: str
    shape: tuple[int, ...]

    def __post_init__(self) -> None:
        if self.dtype not in RAW_DTYPE:  # a graph makes thousands of these, and `nearest` is slow
            raise ValueError(f"unknown dtype {self.dtype!r}{nearest(self.dtype, RAW_DTYPE)}")

    @property
    def nbytes(self) -> int:
        return math.prod(self.shape) * RAW_DTYPE[self.dtype].itemsize

    def evaluate(self, fetch: Fetch) -> np.ndarray:
        return fetch(self.name)


@dataclass(frozen=True)
class Slice:
    """Elements `start` to `stop` of one axis of a stored tensor, of a part of one, or of one in another shape."""

    of: Stored | Slice | Reshape
    axis: int
    start: int
    stop: int

    def __post_init__(self) -> None:
        _demand(
            isinstance(self.of, Stored | Slice | Reshape),
            f"a slice of {_NAMES[type(self.of)]}: only stored tensors are cut",
        )
        _demand(0 <= self.axis < len(self.of.shape), f"axis {self.axis} of shape {list(self.of.shape)}")
        size = self.of.shape[self.axis]
        _demand(0 <= self.start <= self.stop <= size, f"elements {self.start} to {self.stop} of {size}")

    @property
    def dtype(self) -> str:
        return self.of.dtype

    @property
    def shape(self) -> tuple[int, ...]:
        return _resized(self.of.shape, self.axis, self.stop - self.start)

    def evaluate(self, fetch: Fetch) -> np.ndarray:
        index = (slice(None),) * self.axis + (slice(self.start, self.stop),)
        return self.of.evaluate(fetch)[index]


@dataclass(frozen=True)
class Concat:
    """Parts joined along one axis; parts that are adjacent in the file stay a view."""

    parts: tuple[Expr, ...]
    axis: int

    def __post_init__(self) -> None:
        _demand(bool(self.parts), "nothing to join")
        shape = self.parts[0].shape
        _demand(0 <= self.axis < len(shape), f"axis {self.axis} of shape {list(shape)}")
        for part in self.parts:
            _demand(part.dtype == self.dtype, f"{self.dtype} joined with {part.dtype}")
            same = len(part.shape) == len(shape) and _resized(part.shape, self.axis, shape[self.axis]) == shape
            _demand(same, f"{list(shape)} joined with {list(part.shape)} along axis {self.axis}")

    @property
    def dtype(self) -> str:
        return self.parts[0].dtype

    @property
    def shape(self) -> tuple[int, ...]:
        return _resized(self.parts[0].shape, self.axis, sum(part.shape[self.axis] for part in self.parts))

    def evaluate(self, fetch: Fetch) -> np.ndarray:
        arrays = [part.evaluate(fetch) for part in self.parts]
        joined = _adjacent(arrays) if self.axis == 0 else None
        return np.concatenate(arrays, axis=self.axis) if joined is None else joined


@dataclass(frozen=True)
class Reshape:
    """The same elements in another shape."""

    of: Expr
    shape: tuple[int, ...]

    def __post_init__(self) -> None:
        same = math.prod(self.shape) == math.prod(self.of.shape)
        _demand(same, f"shape {list(self.of.shape)} as {list(self.shape)}")

    @property
    def dtype(self) -> str:
        return self.of.dtype

    def evaluate(self, fetch: Fetch) -> np.ndarray:
        return np.ascontiguousarray(self.of.evaluate(fetch)).reshape(self.shape)


@dataclass(frozen=True)
class ToF32:
    """bf16, fp16, fp8 or e8m0 numbers as float32, times a constant factor."""

    of: Expr
    factor: float = 1.0
    dtype = "F32"

    @property
    def shape(self) -> tuple[int, ...]:
        return self.of.shape

    def evaluate(self, fetch: Fetch) -> np.ndarray:
        values = np.asarray(to_f32(self.of.evaluate(fetch), self.of.dtype))
        return values if self.factor == 1.0 else np.asarray(values * np.float32(self.factor))


@dataclass(frozen=True)
class Times:
    """Elementwise float32 product; `by` broadcasts over the trailing axes of `of` (a scale per row, or one scalar)."""

    of: Expr
    by: Expr
    dtype = "F32"

    def __post_init__(self) -> None:
        left, right = self.of.shape, self.by.shape
        _demand(self.of.dtype == self.by.dtype == "F32", f"{self.of.dtype} times {self.by.dtype}")
        broadcast = len(right) <= len(left) and all(b in (1, a) for a, b in zip(left, right, strict=False))
        _demand(broadcast, f"{list(left)} times {list(right)}")

    @property
    def shape(self) -> tuple[int, ...]:
        return self.of.shape

    def evaluate(self, fetch: Fetch) -> np.ndarray:
        left, right = self.of.evaluate(fetch), self.by.evaluate(fetch)
        right = right.reshape(right.shape + (1,) * (left.ndim - right.ndim))
        converted = isinstance(self.of, ToF32) and (self.of.of.dtype != "F32" or self.of.factor != 1.0)
        return np.multiply(left, right, out=left if converted else None)


@dataclass(frozen=True)
class Plus:
    """Float32 numbers plus a constant: the factor of a norm that is stored as its distance from 1."""

    of: Expr
    term: float
    dtype = "F32"

    def __post_init__(self) -> None:
        _demand(self.of.dtype == "F32", f"{self.of.dtype} plus a number")

    @property
    def shape(self) -> tuple[int, ...]:
        return self.of.shape

    def evaluate(self, fetch: Fetch) -> np.ndarray:
        return np.asarray(self.of.evaluate(fetch) + np.float32(self.term))


@dataclass(frozen=True)
class E2M1ToNbits8:
    """Packed E2M1 pairs as 8-bit MatMulNBits codes 128 + 2v; exact, because twice an E2M1 value is a small integer."""

    of: Expr
    dtype = "U8"

    def __post_init__(self) -> None:
        _demand(self.of.dtype == "U8" and bool(self.of.shape), f"codes {self.of.dtype} {list(self.of.shape)}")

    @property
    def shape(self) -> tuple[int, ...]:
        return (*self.of.shape[:-1], self.of.shape[-1] * 2)

    def evaluate(self, fetch: Fetch) -> np.ndarray:
        return _PAIRS[self.of.evaluate(fetch)].view(np.uint8).reshape(self.shape)


Expr = Stored | Slice | Concat | Reshape | ToF32 | Times | Plus | E2M1ToNbits8


def _demand(condition: bool, found: str) -> None:
    if not condition:
        raise ValueError(found)


def _resized(shape: tuple[int, ...], axis: int, size: int) -> tuple[int, ...]:
    return (*shape[:axis], size, *shape[axis + 1 :])


def _pair_table() -> np.ndarray:
    doubled = np.array([0, 1, 2, 3, 4, 6, 8, 12], np.int16)
    codes = np.concatenate([128 + doubled, 128 - doubled]).astype(np.uint8)
    byte = np.arange(256)
    return np.stack([codes[byte & 15], codes[byte >> 4]], axis=1).reshape(-1).view(np.uint16)


_PAIRS = _pair_table()


def _adjacent(arrays: list[np.ndarray]) -> np.ndarray | None:
    """One view over arrays that are adjacent in memory, or None."""
    first = base = arrays[0]
    while isinstance(base.base, np.ndarray):
        base = base.base
    ends = list(accumulate((array.nbytes for array in arrays), initial=_address(first)))
    start, total = ends[0] - _address(base), ends[-1] - ends[0]
    follow = all(_address(array) == end for array, end in zip(arrays, ends, strict=False))
    whole = all(array.flags.c_contiguous for array in (base, *arrays))
    if not follow or not whole or not 0 <= start <= base.nbytes - total:
        return None
    flat = base.reshape(-1).view(np.uint8)[start : start + total]
    return flat.view(first.dtype).reshape(sum(map(len, arrays)), *first.shape[1:])


def _address(array: np.ndarray) -> int:
    return array.__array_interface__["data"][0]


def as_f32(expr: Expr) -> Expr:
    """The expression converted to float32 if it is bf16 or fp16; other expressions unchanged."""
    if isinstance(expr, Concat):
        return Concat(tuple(map(as_f32, expr.parts)), expr.axis)
    return ToF32(expr) if expr.dtype in ("BF16", "F16") else expr


def stored(expr: Expr) -> Iterator[Stored]:
    """The canonical tensors an expression reads, left to right."""
    if isinstance(expr, Stored):
        yield expr
    elif isinstance(expr, Concat):
        yield from chain.from_iterable(map(stored, expr.parts))
    else:
        yield from stored(expr.of)
        if isinstance(expr, Times):
            yield from stored(expr.by)


def is_view(expr: Expr, tensors: Mapping[str, TensorInfo]) -> bool:
    """True if evaluation returns a view of a mapped file with these `tensors`; memory planning counts all others."""
    if isinstance(expr, Stored):
        return True
    if isinstance(expr, Slice):
        return expr.axis == 0 and is_view(expr.of, tensors)
    if isinstance(expr, Concat):
        infos = [tensors.get(part.name) if isinstance(part, Stored) else None for part in expr.parts]
        follow = (a is not None and b is not None and _end(a) == (b.file, b.offset) for a, b in pairwise(infos))
        return expr.axis == 0 and None not in infos and all(follow)
    return isinstance(expr, Reshape) and is_view(expr.of, tensors)


def _end(info: TensorInfo) -> tuple[int, int]:
    return info.file, info.offset + info.nbytes


_OPS: dict[str, type] = {
    "stored": Stored,
    "slice": Slice,
    "concat": Concat,
    "reshape": Reshape,
    "to_f32": ToF32,
    "times": Times,
    "plus": Plus,
    "e2m1_to_nbits8": E2M1ToNbits8,
}
_NAMES = {cls: name for name, cls in _OPS.items()}


def to_json(expr: Expr) -> dict[str, Any]:
    """The expression as JSON: `{"op": name, field: value ...}`."""
    return {"op": _NAMES[type(expr)], **{key: _plain(value) for key, value in vars(expr).items()}}


def _plain(value: Any) -> Any:
    if isinstance(value, tuple):
        return [_plain(part) for part in value]
    return to_json(value) if type(value) in _NAMES else value


def from_json(data: Any, *, depth: int = 0) -> Expr:
    """Strict inverse of `to_json`.

    Raises:
        EngineError: an unknown operation or field, a wrong type, inconsistent shapes, or nesting beyond `MAX_DEPTH`.
    """
    if depth > MAX_DEPTH or not isinstance(data, Mapping):
        raise _unreadable(f"{type(data).__name__} at depth {depth}")
    name = data.get("op")
    cls = _OPS.get(name) if isinstance(name, str) else None
    if cls is None:
        raise _unreadable(f"operation {name!r}{nearest(str(name), _OPS)}", fix="update llmc")
    known = {field.name: field for field in fields(cls)}
    values = {key: value for key, value in data.items() if key != "op"}
    for key in values:
        if key not in known:
            raise _unreadable(f"{name}: unknown field {key!r}{nearest(key, known)}", fix="update llmc")
    missing = [key for key, field in known.items() if field.default is MISSING and key not in values]
    if missing:
        raise _unreadable(f"{name}: no field {missing[0]!r}")
    try:
        return cls(**{key: _field(key, value, depth) for key, value in values.items()})
    except ValueError as error:
        raise _unreadable(f"{name}: {error}") from None


def _field(key: str, value: Any, depth: int) -> Any:
    if key in ("of", "by"):
        return from_json(value, depth=depth + 1)
    if key == "parts" and isinstance(value, list) and value:
        return tuple(from_json(part, depth=depth + 1) for part in value)
    if key == "shape" and isinstance(value, list) and all(type(n) is int and 0 <= n < 2**48 for n in value):
        return tuple(value)
    if key in ("axis", "start", "stop") and type(value) is int and 0 <= value < 2**48:
        return value
    if key in ("name", "dtype") and isinstance(value, str):
        return value
    if key in ("factor", "term") and isinstance(value, float) and math.isfinite(value):
        return value
    raise _unreadable(f"field {key!r} = {str(value)[:80]!r}")


def _unreadable(found: str, fix: str = "rebuild the engine") -> EngineError:
    return EngineError("cannot read a weight expression", found=found, fix=fix)


def evaluate_weight(expr: Expr, fetch: Fetch, *, initializer: str) -> np.ndarray:
    """The initializer's array, in the raw representation of `expr.dtype`, of shape `expr.shape`.

    Raises:
        EngineError: a stored tensor has another dtype or shape than the expression expects, or the shape has more axes
            than numpy supports; names the initializer.
        ResourceError: there is not enough memory.
    """
    fetched = {leaf.name: fetch(leaf.name) for leaf in stored(expr)}
    for leaf in stored(expr):
        found = fetched[leaf.name]
        if tuple(found.shape) != leaf.shape or found.dtype != RAW_DTYPE[leaf.dtype]:
            raise EngineError(
                f"expected tensor {leaf.name!r} as {leaf.dtype} of shape {list(leaf.shape)} for weight {initializer!r}",
                found=f"{found.dtype} of shape {list(found.shape)}",
                fix="rebuild the engine",
            )
    try:
        return expr.evaluate(fetched.__getitem__)
    except MemoryError:
        size = math.prod(expr.shape) * RAW_DTYPE[expr.dtype].itemsize
        raise ResourceError(
            f"cannot evaluate weight {initializer!r} of {size} bytes", found="not enough memory"
        ) from None
    except ValueError as error:
        fix = "rebuild the engine"
        raise EngineError(f"cannot evaluate weight {initializer!r}", found=str(error), fix=fix) from error
