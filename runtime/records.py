"""Frozen dataclasses from JSON and back, read strictly: what an engine says is judged key by key before it is used."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import MISSING, Field, fields, is_dataclass
from functools import cache
from types import UnionType
from typing import Any, get_args, get_origin, get_type_hints

from .errors import EngineError
from .strict_json import nearest


def read(kind: Any, value: Any, where: str, lenient: bool = False) -> Any:
    """`value` as the type `kind`: a dataclass, tuple[T, ...], Mapping[str, T], T | None or a plain type.

    EngineError names `where` and the key at fault; with `lenient` unknown keys are ignored.
    """
    origin, inner = get_origin(kind), get_args(kind)
    if kind is Any:
        return value
    if origin is UnionType:
        return None if value is None else read(inner[0], value, where, lenient)
    if origin is tuple:
        return tuple(read(inner[0], item, where, lenient) for item in _typed(value, list, where, "a list"))
    if origin is Mapping:
        members = _typed(value, dict, where, "an object").items()
        return {name: read(inner[1], item, f"{where}.{name[:256]}", lenient) for name, item in members}
    if is_dataclass(kind):
        return _read_fields(kind, _typed(value, dict, where, "an object"), where, lenient)
    if kind is float:
        if abs(_typed(value, (int, float), where, "a number")) >= 1 << 63:
            raise EngineError(f"{where}: a number of sensible size", found=f"{value}"[:80])
        return float(value)
    if kind is int and not 0 <= _typed(value, int, where, "an integer") < 1 << 63:
        raise EngineError(f"{where}: a non-negative integer below 2^63", found=f"{value}"[:80])
    return _typed(value, kind, where, {str: "a string", bool: "true or false", int: "an integer"}[kind])


def _read_fields(kind: Any, value: dict[str, Any], where: str, lenient: bool) -> Any:
    hints = _hints(kind)
    known = {_key(item): item for item in fields(kind)}
    for key in value:
        if key not in known and not lenient:
            raise EngineError(f"{where}: only known keys", found=f"{key[:256]!r}{nearest(key, known)}")
    for key, item in known.items():
        if key not in value and item.default is MISSING and item.default_factory is MISSING:
            raise EngineError(f"{where}: the key {key!r}", found="no such key")
    return kind(
        **{
            item.name: read(hints[item.name], value[key], f"{where}.{key}", lenient)
            for key, item in known.items()
            if key in value
        }
    )


@cache
def _hints(kind: Any) -> dict[str, Any]:
    return get_type_hints(kind)


def _typed(value: Any, kind: Any, where: str, expected: str) -> Any:
    if not isinstance(value, kind) or (isinstance(value, bool) and kind is not bool):
        raise EngineError(f"{where}: {expected}", found=f"{value!r}"[:200])
    return value


def plain(value: Any) -> Any:
    """Dataclasses as objects and tuples as lists, all the way down."""
    if is_dataclass(value):
        return {_key(item): plain(getattr(value, item.name)) for item in fields(value)}
    if isinstance(value, Mapping):
        return {name: plain(item) for name, item in value.items()}
    return [plain(item) for item in value] if isinstance(value, (list, tuple)) else value


def _key(item: Field[Any]) -> str:
    return item.metadata.get("key", item.name)
