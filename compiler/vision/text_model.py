"""Reads the text model out of the config of an architecture of images and text: its family, and its keys."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

from ...runtime.errors import CheckpointError, Unsupported
from ..config.fields import Fields, shown
from ..config.foreign import missing
from ..config.keys import COMMON, classify_keys
from .table import IMAGES, KINDS, ROWS, WHY_IGNORED, Kind, Row

_WHOLE = ("dtype", "torch_dtype", "bos_token_id", "eos_token_id", "quantization_config", "compression_config")
"""Keys that concern the whole model: the value at the top counts, if there is one."""
_EITHER = frozenset(
    (*_WHOLE, "architectures", "model_type", "tie_word_embeddings", "pad_token_id", "initializer_range")
)
"""Keys that may differ at the top and in the text model's config."""


class Decoder(Protocol):
    """What is asked of a family of text models (`Family`)."""

    @property
    def name(self) -> str: ...
    @property
    def architecture(self) -> str: ...
    @property
    def defaults(self) -> Mapping[str, Any]: ...
    @property
    def keys(self) -> frozenset[str]: ...


@dataclass(frozen=True)
class TextPart:
    """The keys of a text model."""

    values: Mapping[str, Any]
    what: str
    """The place of the values, for errors."""
    ignored: Mapping[str, str]
    """Unused key to the reason."""
    accepted: tuple[str, ...]


def row_of(raw: Mapping[str, Any]) -> Row | None:
    """The row of a config's architecture, or of its `model_type` if it names none; None if it is of text alone."""
    named = raw.get("architectures")
    if not named:
        return next((row for row in ROWS.values() if row.model_type == raw.get("model_type")), None)
    return ROWS.get(named[0]) if isinstance(named, list) and isinstance(named[0], str) else None


def text_part(
    raw: Mapping[str, Any], row: Row, families: Mapping[str, Decoder], accept: Collection[str], what: str
) -> tuple[Kind, TextPart]:
    """The text model of a config of this row, and its keys.

    `accept` names unknown keys to ignore, `what` the file in errors.

    Raises:
        CheckpointError: the text model's config is missing, keys are unknown, or it contradicts the top.
        Unsupported: llmc does not compute the text model.
        RecipeError: a key in `accept` is not in the file, or is not an unknown key.
    """
    _check_names(raw, row, what)
    inner = Fields(raw, what).table(row.config)
    if inner is None and not row.flat:
        raise Fields(raw, what).refuse(row.config, "the config of the text model")
    outer = {key: value for key, value in raw.items() if key != row.config}
    if outer.pop("use_llm_lora", 0):
        asked = f'expected "use_llm_lora" as 0 in {what}'
        raise Unsupported(asked, found=shown(raw["use_llm_lora"]), fix="merge the adapter into the text model")
    if inner is None:
        inner, outer, where = {key: value for key, value in outer.items() if key != "model_type"}, {}, what
    else:
        where = f'"{row.config}" of {what}'
    kind = _kind(inner, row, families, where)
    family = families[kind.family]
    defaults, own = {**family.defaults, **kind.defaults}, family.keys | kind.defaults.keys()
    top, inside = dict(outer), dict(inner)
    ignored = {key: WHY_IGNORED for key in (*top, *inside) if key in IMAGES}
    for one in (top, inside):
        for key in IMAGES & one.keys():
            del one[key]
    for key in (COMMON | own) & top.keys() - _EITHER:
        _require_same(key, top.pop(key), inside.get(key, defaults.get(key)), row, what)
        ignored[key] = f"{row.config} alone says it of the text model"
    lower, accepted = classify_keys(inside, [key for key in accept if key in inside], where, own)
    upper, more = classify_keys(top, [key for key in accept if key not in inside], what)
    values = {key: value for key, value in inside.items() if key not in ("architectures", "model_type")}
    values |= {key: top[key] for key in _WHOLE if top.get(key) is not None}
    values.setdefault("initializer_range", top.get("initializer_range"))
    values["tie_word_embeddings"] = _tied(Fields(outer, what), Fields(inner, where), row, defaults)
    return kind, TextPart(values, where, upper | lower | ignored, (*more, *accepted))


def _check_names(raw: Mapping[str, Any], row: Row, what: str) -> None:
    found = raw.get("model_type", row.model_type)
    if found != row.model_type:
        raise CheckpointError(
            f'expected "architectures" and "model_type" of one model in {what}',
            found=f"{row.architecture} and {shown(found)}",
            fix="the config.json that belongs to these weights",
        )


def _kind(inner: Mapping[str, Any], row: Row, families: Mapping[str, Decoder], where: str) -> Kind:
    """What the text model is: one of the table, or a family by its name."""
    named = Fields(inner, where).text("model_type", row.kind)
    own = next((Kind(family.architecture) for family in families.values() if family.name == named), None)
    kind = KINDS.get(row.kind if named == row.model_type else named, own)
    if kind is None or kind.family not in families:
        known = sorted({family.name for family in families.values()} | KINDS.keys())
        lacking = ", ".join(missing("", named))
        found = f'model_type "{named}"{lacking and f" (not computed: {lacking})"}'
        raise Unsupported(f"expected a text model of {', '.join(known)} in {where}", found=found)
    return kind


def _require_same(key: str, outer: Any, inner: Any, row: Row, what: str) -> None:
    """Check that a key of all models does not say something else at the top: programs differ in which they take.

    Raises:
        CheckpointError: it does.
    """
    if key in COMMON and None not in (outer, inner) and outer != inner:
        raise CheckpointError(
            f'expected one value of "{key}" in {what}',
            found=f"{shown(outer)} at the top, {shown(inner)} in {row.config}",
            fix="remove the one that is wrong",
        )


def _tied(outer: Fields, inner: Fields, row: Row, defaults: Mapping[str, Any]) -> bool:
    """Whether the embedding is the head. Transformers 5 says it at the top, 4 said it in the text model's config."""
    key = "tie_word_embeddings"
    if row.tied:
        return outer.flag(key, True)
    return outer.flag(key, False) or inner.flag(key, bool(defaults.get(key)))
