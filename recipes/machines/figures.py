"""Figures of machines in YAML: a value with its unit and the source that says so; no figure stands without a source."""

from __future__ import annotations

import re
from collections.abc import Collection

from ...runtime.errors import RecipeError
from ...runtime.machine import size_bytes
from ..strict_yaml import Mapping, Node
from ..units import SHAPE_OF_TIME, seconds_of
from .link import Protocol

MAX_COUNT = 4096
_PROTOCOL = ("start", "step", "reached")
_DOLLARS = re.compile(r"\$(\d{1,6}(?:\.\d{1,4})?)")


def keys(mapping: Mapping, needed: Collection[str], also: Collection[str] = ()) -> None:
    """Check that a mapping has all keys of `needed`, and no other but those of `also`.

    Raises:
        RecipeError: a key is missing or unknown.
    """
    mapping.only((*needed, *also))
    for key in needed:
        if key not in mapping:
            raise mapping.error(f"expected {key!r} here")


def count(mapping: Mapping, key: str) -> int:
    """A number of things with its source, from 1 to MAX_COUNT."""
    return _value(mapping, key).integer(
        lambda value: "" if 1 <= value <= MAX_COUNT else f"expected a number from 1 to {MAX_COUNT}"
    )


def per_second(mapping: Mapping, key: str) -> float:
    """Bytes/s with their source, written as a size: 450GB."""
    return _per_second(_value(mapping, key))


def seconds(mapping: Mapping, key: str) -> float:
    """A time with its source: 12.5us."""
    return _seconds(_value(mapping, key))


def dollars(mapping: Mapping, key: str) -> float:
    """Dollars with their source, written as $2.99."""
    text = _value(mapping, key).text(lambda text: "" if _DOLLARS.fullmatch(text) else "expected dollars, such as $2.99")
    return float(text[1:])


def protocols(mapping: Mapping, key: str) -> tuple[Protocol, ...]:
    """Protocols, at least one, that were measured together and have one source."""
    group = mapping[key].mapping()
    keys(group, ("source", "protocols"))
    _source(group)
    found = [item.mapping() for item in group["protocols"].items()]
    if not found:
        raise group.error_at("protocols", "expected at least one protocol")
    for one in found:
        keys(one, _PROTOCOL)
    return tuple(map(_protocol, found))


def sourced_protocol(mapping: Mapping, key: str) -> Protocol:
    """One protocol with its source."""
    figures = mapping[key].mapping()
    keys(figures, (*_PROTOCOL, "source"))
    _source(figures)
    return _protocol(figures)


def _protocol(mapping: Mapping) -> Protocol:
    return Protocol(_seconds(mapping["start"]), _seconds(mapping["step"]), _per_second(mapping["reached"]))


def _value(mapping: Mapping, key: str) -> Node:
    """The value beside its source."""
    figure = mapping[key].mapping()
    keys(figure, ("value", "source"))
    _source(figure)
    return figure["value"]


def _source(figure: Mapping) -> None:
    figure["source"].text(lambda text: "" if text.strip() else "expected where the figure comes from")


def _seconds(node: Node) -> float:
    text = node.text(lambda text: f"expected a time, such as {SHAPE_OF_TIME}" if seconds_of(text) is None else "")
    return seconds_of(text) or 0.0


def _per_second(node: Node) -> float:
    def wrong(text: str) -> str:
        try:
            size_bytes(text)
        except RecipeError:
            return "expected bytes of a second, such as 450GB"
        return ""

    return float(size_bytes(node.text(wrong)))
