"""Reads the rotary embedding's settings, which config files spell in five ways, and refuses unknown ones.

Meaning, defaults and precedence are those of transformers 5 (`modeling_rope_utils.py`). A file that two versions of
transformers would read differently is refused.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

from ...runtime.errors import CheckpointError, Unsupported, nearest
from .fields import Fields, is_number, shown

_OPTIONAL_YARN = ("attention_factor", "mscale", "mscale_all_dim")
_BY_TYPE: dict[str, frozenset[str]] = {
    "default": frozenset(),
    "linear": frozenset({"factor"}),
    "dynamic": frozenset({"factor"}),
    "llama3": frozenset({"factor", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings"}),
    "yarn": frozenset({"factor", "original_max_position_embeddings", "beta_fast", "beta_slow", "truncate"})
    | frozenset(_OPTIONAL_YARN),
    "longrope": frozenset(
        {"factor", "original_max_position_embeddings", "short_factor", "long_factor", "attention_factor"}
    ),
    "proportional": frozenset({"factor"}),
}
ROPE_TYPES = tuple(_BY_TYPE)
_ALIASES = {"su": "longrope", "mrope": "default"}
"""longrope was called su before transformers 4.41; mrope turns text as the default does."""
SECTIONS = frozenset({"mrope_section", "mrope_interleaved"})
"""Which frequencies turn by which of an image's axes; the positions of text are equal along all of them."""
_COMMON = frozenset({"rope_type", "type", "rope_theta", "partial_rotary_factor"})
_HARMLESS = {
    "finetuned": "it says that the weights were trained with these frequencies",
    "attn_factor": "it is for other runtimes: transformers reads attention_factor, and computes it where it is absent",
}
_KNOWN = frozenset().union(_COMMON, _HARMLESS, *_BY_TYPE.values())
_MAX_POSITIONS = 2**31 - 1
_MAX_FACTOR = 1e6


@dataclass(frozen=True)
class RopeConfig:
    """The settings of a rotary embedding."""

    type: str
    """One of ROPE_TYPES."""
    theta: float
    """Base of the wavelengths."""
    parameters: Mapping[str, float | int | bool | list[float]]
    """All parameters of the type (`_BY_TYPE`). short_factor and long_factor are lists of half as many numbers as are
    rotated; attention_factor, mscale and mscale_all_dim are present only if the config gives them."""
    size: int = 0
    """Elements of a head that are rotated, its first ones; 0: all."""
    interleaved: bool = False
    """Turns neighbouring elements, and not element i with element i + size / 2."""

    def rotated(self, head_dim: int) -> int:
        """Elements of a head of this size that are rotated."""
        return self.size or head_dim


@dataclass(frozen=True)
class RopeDefaults:
    """What a family's config class takes where a config says nothing, and how it turns."""

    theta: float = 10_000.0
    share: float | None = None
    """Part of each head that is rotated; None: all of it, whatever a config says, so that another part is refused."""
    type: str = "default"
    interleaved: bool = False
    nested: str = "full_attention"
    """The key of these layers in rope_parameters that differ by the kind of layer."""
    keys: frozenset[str] = frozenset()
    """Further settings that the family reads by itself."""
    old: Mapping[str, Any] | None = None
    """The old spelling of these layers: rope_theta and rope_scaling. None: the keys of the config itself."""


def parse_rope(
    config: Mapping[str, Any],
    *,
    head_dim: int,
    max_position_embeddings: int,
    what: str,
    defaults: RopeDefaults = RopeDefaults(),
) -> tuple[RopeConfig, dict[str, str], list[str]]:
    """The rotary settings of a config, {ignored key: reason}, and notes on derived values.

    `what` names the file in errors.

    Raises:
        CheckpointError: a setting is missing, contradictory, out of range or unknown.
        Unsupported: the rope type is unknown, or the part of a head that is rotated is one that the family has not.
    """
    name, given = _settings(config, what, defaults)
    if defaults.old is not None:  # rope_theta of the config itself may be that of other layers
        config = {**config, "rope_theta": None, **({} if name == "rope_parameters" else defaults.old)}
    fields = Fields(given, f'"{name}" of {what}')
    kind = _rope_type(fields, defaults.type)
    share = _one_value("partial_rotary_factor", config, given, what).number(
        "partial_rotary_factor", 0.0, 1.0, defaults.share or 1.0, open_low=True
    )
    if defaults.share is None and share != 1.0:
        asked = f'expected "partial_rotary_factor" as 1 (the whole head is rotated) in {what}'
        raise Unsupported(asked, found=f"{share:g}")
    whole = kind == "proportional"
    size = head_dim if whole else int(head_dim * share)
    if size < 2 or size % 2:
        asked = f'expected "partial_rotary_factor" that rotates an even number of elements in {what}'
        raise Unsupported(asked, found=f"{share:g} of {head_dim}: {size}")
    ignored = _ignored_keys(given, kind, name, fields.what, defaults.keys)
    theta = _one_value("rope_theta", config, given, what).number("rope_theta", 1.0, 1e15, defaults.theta, open_low=True)
    notes: list[str] = []
    parameters: dict[str, float | int | bool | list[float]] = {}
    if "original_max_position_embeddings" in _BY_TYPE[kind]:
        original = _one_value("original_max_position_embeddings", config, given, what)
        known = original.integer("original_max_position_embeddings", 1, _MAX_POSITIONS)
        if known is None:
            notes.append(f"{name}: original_max_position_embeddings taken from max_position_embeddings")
        parameters["original_max_position_embeddings"] = max_position_embeddings if known is None else known
        if not fields.has("factor") and kind in ("yarn", "longrope"):
            if known is None:
                raise fields.refuse("factor", "a number, or original_max_position_embeddings to derive it from")
            parameters["factor"] = max(max_position_embeddings / known, 1.0)
            notes.append(f"{name}: factor = max_position_embeddings / original_max_position_embeddings")
    if whole:
        parameters["factor"] = fields.number("factor", 1.0, _MAX_FACTOR, 1.0)
        parameters["share"] = share
    if "factor" in _BY_TYPE[kind] and "factor" not in parameters:
        parameters["factor"] = _need(fields, "factor", 1.0, _MAX_FACTOR)
    if kind in _READERS:
        _READERS[kind](fields, size, parameters)
    return RopeConfig(kind, theta, parameters, size if size < head_dim else 0, defaults.interleaved), ignored, notes


LAYER_KINDS = ("full_attention", "sliding_attention", "chunked_attention", "linear_attention")
"""Kinds of layers that transformers 5 may nest rope_parameters under."""


def _settings(config: Mapping[str, Any], what: str, defaults: RopeDefaults) -> tuple[str, Mapping[str, Any]]:
    """The key and the object of the settings; transformers 5 may nest the object under the kind of layer."""
    new = Fields(config, what).table("rope_parameters")
    old = Fields(config if defaults.old is None else defaults.old, what).table("rope_scaling")
    if new is not None and new.keys() <= {*LAYER_KINDS} and all(isinstance(one, dict | None) for one in new.values()):
        new = Fields(new, f'"rope_parameters" of {what}').table(defaults.nested) or {}
    if new is not None and old is not None and new != old and defaults.old is None:
        raise CheckpointError(
            f'expected "rope_parameters" and "rope_scaling" to agree in {what}',
            found=f"{shown(new)} and {shown(old)}",
            fix="remove the one that is wrong: versions of transformers differ in which they read",
        )
    return ("rope_parameters", new) if new is not None else ("rope_scaling", old or {})


def _rope_type(fields: Fields, default: str) -> str:
    names = {fields.text(key, "") for key in ("rope_type", "type")} - {""}
    if len(names) > 1:
        raise fields.refuse("rope_type", f'the same as "type" ({fields.values["type"]!r})')
    name = names.pop() if names else default
    kind = _ALIASES.get(name, name)
    if kind not in _BY_TYPE:
        raise Unsupported(
            f"expected a rope type of {', '.join(ROPE_TYPES)} in {fields.what}",
            found=f"{name!r}{nearest(name, ROPE_TYPES)}",
        )
    return kind


def _ignored_keys(given: Mapping[str, Any], kind: str, name: str, what: str, own: Collection[str]) -> dict[str, str]:
    """{ignored key: reason}; refuses unknown keys."""
    ignored = {}
    if nested := [key for key, value in given.items() if isinstance(value, dict)]:
        raise Unsupported(
            f"expected rotary embeddings that are the same for all layers in {what}", found=", ".join(nested)
        )
    for key, value in given.items():
        if key in own:
            continue
        if key in SECTIONS:
            ignored[f"{name}.{key}"] = "it concerns images: along all axes, the positions of text are equal"
            continue
        if key not in _KNOWN and value is not None:
            raise CheckpointError(
                f"expected only known keys of rotary embeddings in {what}",
                found=f'"{key}": {shown(value)}{nearest(key, _KNOWN)}',
            )
        if key in _HARMLESS:
            ignored[f"{name}.{key}"] = _HARMLESS[key]
        elif key not in _BY_TYPE[kind] and key not in _COMMON:
            ignored[f"{name}.{key}"] = f"rope type {kind} has no such parameter"
    return ignored


def _one_value(key: str, config: Mapping[str, Any], given: Mapping[str, Any], what: str) -> Fields:
    """A value from the top of the config or from the rope settings; if both have it, they must be equal."""
    outer, inner = config.get(key), given.get(key)
    if outer is not None and inner is not None and outer != inner:
        raise CheckpointError(
            f'expected one value of "{key}" in {what}',
            found=f"{shown(outer)} at the top, {shown(inner)} among the rope settings",
            fix="remove the one that is wrong: versions of transformers differ in which they read",
        )
    return Fields({key: inner if outer is None else outer}, what)


def _need(fields: Fields, key: str, low: float, high: float, *, open_low: bool = False) -> float:
    value = fields.number(key, low, high, None, open_low=open_low)
    if value is None:
        raise fields.refuse(key, "a number (this rope type needs it)")
    return value


def _read_llama3(fields: Fields, size: int, parameters: dict[str, Any]) -> None:
    low = _need(fields, "low_freq_factor", 0.0, _MAX_FACTOR, open_low=True)
    high = _need(fields, "high_freq_factor", 0.0, _MAX_FACTOR, open_low=True)
    if high < low:
        raise fields.refuse("high_freq_factor", f"a number of at least low_freq_factor ({low:g})")
    parameters.update(low_freq_factor=low, high_freq_factor=high)


def _read_yarn(fields: Fields, size: int, parameters: dict[str, Any]) -> None:
    fast = fields.number("beta_fast", 0.0, _MAX_FACTOR, 32.0, open_low=True)
    slow = fields.number("beta_slow", 0.0, _MAX_FACTOR, 1.0, open_low=True)
    if fast < slow:
        asked = f'expected "beta_fast" of at least "beta_slow" in {fields.what}'
        raise CheckpointError(asked, found=f"{fast:g} and {slow:g}")
    parameters.update(beta_fast=fast, beta_slow=slow, truncate=fields.flag("truncate", True))
    _read_optional(fields, _OPTIONAL_YARN, parameters)


def _read_optional(fields: Fields, keys: Collection[str], parameters: dict[str, Any]) -> None:
    parameters.update({key: fields.number(key, 0.0, _MAX_FACTOR) for key in keys if fields.has(key)})


def _read_longrope(fields: Fields, size: int, parameters: dict[str, Any]) -> None:
    for key in ("short_factor", "long_factor"):
        factors = fields.values.get(key)
        entries = factors if isinstance(factors, list) else []
        if len(entries) != size // 2 or not all(
            is_number(factor, 0.0, _MAX_FACTOR, open_low=True) for factor in entries
        ):
            raise fields.refuse(key, f"a list of {size // 2} positive numbers (half of what is rotated of a head)")
        parameters[key] = [float(factor) for factor in entries]
    _read_optional(fields, ("attention_factor",), parameters)


_READERS = {"llama3": _read_llama3, "yarn": _read_yarn, "longrope": _read_longrope}
"""Readers of the types that have parameters of their own."""
