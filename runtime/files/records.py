"""Frozen dataclasses from JSON and back; the reader checks every key and type of an engine's JSON before its use."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import MISSING, Field, fields, is_dataclass
from functools import cache
from types import NoneType, UnionType
from typing import Any, get_args, get_origin, get_type_hints

from ..errors import EngineError, nearest

Reader = Callable[[Any, bool], Any]
"""Takes a JSON value and True to ignore unknown keys; returns the typed value, raises _Wrong."""


class _Wrong(Exception):
    """What is wrong, and where. Keys are collected while the error rises, so that a correct value costs nothing."""

    def __init__(self, expected: str, found: str) -> None:
        self.expected, self.found = expected, found
        self.path: list[str] = []


def read(kind: Any, value: Any, where: str, lenient: bool = False) -> Any:
    """`value` as the type `kind`: a dataclass, tuple[T, ...], Mapping[str, T], T | None or a plain type.

    Of a union of dataclasses, it is the one whose first field is a key of the value.

    With `lenient`, unknown keys are ignored.

    Raises:
        EngineError: the value does not have this type; names `where` and the key.
    """
    try:
        return _reader(kind)(value, lenient)
    except _Wrong as wrong:
        place = ".".join([where, *reversed(wrong.path)])
        raise EngineError(f"expected {wrong.expected} in {place}", found=wrong.found) from None


@cache
def _reader(kind: Any) -> Reader:
    origin, inner = get_origin(kind), get_args(kind)
    if kind is Any:
        return lambda value, _: value
    if origin is UnionType and NoneType not in inner:
        return _either(inner)
    if origin is UnionType:
        some = _reader(inner[0])
        return lambda value, lenient: None if value is None else some(value, lenient)
    if origin is tuple:
        return _list(_reader(inner[0]))
    if origin is Mapping:
        return _mapping(_reader(inner[1]))
    return _record(kind) if is_dataclass(kind) else _PLAIN[kind]


def _list(item: Reader) -> Reader:
    def reader(value: Any, lenient: bool) -> Any:
        return tuple([item(one, lenient) for one in _typed(value, list, "a list")])

    return reader


def _mapping(item: Reader) -> Reader:
    def reader(value: Any, lenient: bool) -> Any:
        return {name: _inner(item, one, lenient, name) for name, one in _typed(value, dict, "an object").items()}

    return reader


def _inner(item: Reader, value: Any, lenient: bool, key: str) -> Any:
    try:
        return item(value, lenient)
    except _Wrong as wrong:
        wrong.path.append(key[:256])
        raise


def _record(kind: Any) -> Reader:
    hints = get_type_hints(kind)
    known = {_key(item): (item.name, _reader(hints[item.name])) for item in fields(kind)}
    needed = {_key(item) for item in fields(kind) if item.default is MISSING and item.default_factory is MISSING}

    def reader(value: Any, lenient: bool) -> Any:
        given = _typed(value, dict, "an object")
        if missing := needed - given.keys():
            raise _Wrong(f"the key {min(missing)!r}", "no such key")
        arguments = {}
        for key, one in given.items():
            if key not in known:
                if lenient:
                    continue
                raise _Wrong("only known keys", f"{key[:256]!r}{nearest(key, known)}")
            name, item = known[key]
            arguments[name] = _inner(item, one, lenient, key)
        return kind(**arguments)

    return reader


def _either(kinds: tuple[Any, ...]) -> Reader:
    records = {_key(fields(kind)[0]): _reader(kind) for kind in kinds}

    def reader(value: Any, lenient: bool) -> Any:
        given = _typed(value, dict, "an object")
        for key, record in records.items():
            if key in given:
                return record(value, lenient)
        raise _Wrong(f"the key {' or '.join(map(repr, records))}", "no such key")

    return reader


def _float(value: Any, _: bool) -> float:
    if abs(_typed(value, (int, float), "a number")) >= 1 << 63:
        raise _Wrong("a number of sensible size", f"{value}"[:80])
    return float(value)


def _int(value: Any, _: bool) -> int:
    if not 0 <= _typed(value, int, "an integer") < 1 << 63:
        raise _Wrong("a non-negative integer below 2^63", f"{value}"[:80])
    return value


_PLAIN: Mapping[Any, Reader] = {
    float: _float,
    int: _int,
    str: lambda value, _: _typed(value, str, "a string"),
    bool: lambda value, _: _typed(value, bool, "true or false"),
}


def _typed(value: Any, kind: Any, expected: str) -> Any:
    if not isinstance(value, kind) or (isinstance(value, bool) and kind is not bool):
        raise _Wrong(expected, f"{value!r}"[:200])
    return value


def plain(value: Any) -> Any:
    """Dataclasses as objects and tuples as lists, recursively; omits a field that is None by default and is None."""
    if is_dataclass(value):
        pairs = [(item, getattr(value, item.name)) for item in fields(value)]
        return {_key(item): plain(one) for item, one in pairs if one is not None or item.default is not None}
    if isinstance(value, Mapping):
        return {name: plain(item) for name, item in value.items()}
    return [plain(item) for item in value] if isinstance(value, (list, tuple)) else value


def _key(item: Field[Any]) -> str:
    return item.metadata.get("key", item.name)
