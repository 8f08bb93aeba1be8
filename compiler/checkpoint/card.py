"""What a checkpoint says of itself in words: its model's name and licence, from the model card in README.md.

A card is untrusted text for people: what cannot be read is unknown, and no checkpoint is refused for its card.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import NamedTuple

from ...recipes.strict_yaml import Document, Mapping
from ...runtime.errors import LlmcError
from .folder import Folder

CARD = "README.md"
LICENCES = "LICEN[SC]E*"
"""Files that the hub's client fetches because their names are read."""
_MAX_CARD_BYTES = 1 << 20
_MAX_TEXT = 96
_FENCE = "---"
"""The line before and after a card's front matter, which is YAML."""
_TEMPLATE = "Model Card for "
"""How the hub's template of a card begins its heading."""
_MARKUP = re.compile(r"[<>\[\]|`*]")
_LICENCE_FILE = re.compile(r"(LICEN[SC]E|COPYING)(\.(txt|md|rst))?", re.IGNORECASE)


class Card(NamedTuple):
    """Name and licence of a model; None where the card does not say."""

    name: str | None
    licence: str | None


def read_card(folder: Folder) -> Card:
    """The name in the card's front matter, else its first heading; the licence there, else the name of its file."""
    try:
        text = folder.read(CARD, _MAX_CARD_BYTES)[0].decode("utf-8", "replace")
    except LlmcError:
        text = ""
    lines = [line.rstrip() for line in text.splitlines()]
    end = lines.index(_FENCE, 1) if lines[:1] == [_FENCE] and _FENCE in lines[1:] else 0
    said = _front_matter("\n".join(lines[1:end]))
    name = _text(said, "model_name") or _index_name(said) or _heading(lines[end:])
    return Card(name, _licence(said) or _licence_file(folder))


def _front_matter(text: str) -> Mapping | None:
    try:
        return Document(CARD, text.encode(), schema="the hub's model cards").mapping()
    except LlmcError:
        return None


def _heading(lines: Sequence[str]) -> str | None:
    """The first heading, if it is plain text."""
    first = next((line.removeprefix("# ") for line in lines if line.startswith("# ")), "")
    return None if _MARKUP.search(first) else _shown(first.removeprefix(_TEMPLATE))


def _licence(said: Mapping | None) -> str | None:
    """The hub's name of the licence; "other" is named by `license_name`."""
    named = _text(said, "license")
    return (_text(said, "license_name") or named) if named == "other" else named


def _licence_file(folder: Folder) -> str | None:
    found = next((name for name in folder.names() if _LICENCE_FILE.fullmatch(name)), None)
    return f"see {found}" if found else None


def _index_name(said: Mapping | None) -> str | None:
    """The name of the first model of `model-index`, where the hub keeps results of evaluations."""
    try:
        models = said["model-index"].items() if said is not None and "model-index" in said else ()
        return _text(models[0].mapping(), "name") if models else None
    except LlmcError:
        return None


def _text(said: Mapping | None, key: str) -> str | None:
    """The text of a key, or the texts of a list of them."""
    if said is None or key not in said:
        return None
    try:
        texts = [said[key].text(_any)]
    except LlmcError:
        try:
            texts = [one.text(_any) for one in said[key].items()]
        except LlmcError:
            return None
    return _shown(", ".join(texts))


def _any(_: str) -> str:
    return ""


def _shown(text: str) -> str | None:
    """A text that a terminal may show on one line, else None."""
    text = text.strip()
    return text if text and text.isprintable() and len(text) <= _MAX_TEXT else None
