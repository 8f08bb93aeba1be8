"""Reads config.json: resolves Hugging Face's names, defaults and two generations of spelling into one value."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from ...runtime.dtypes import CONFIG_DTYPES
from ...runtime.errors import CheckpointError, RecipeError, Unsupported
from ..config.fields import Fields, is_int, load_object, shown
from ..config.foreign import missing
from ..config.keys import COMMON, HARMLESS, REMOTE_CODE, classify_keys
from ..vision.table import Kind, Row
from ..vision.text_model import TextPart, row_of, text_part
from . import FAMILIES, REMOTE
from .kin import nearest_kin
from .reading import ConfigReader, Family
from .spec import DecoderSpec

_DTYPES = {**{name: name for name in CONFIG_DTYPES}, "half": "float16", "float": "float32", "auto": None}


@dataclass(frozen=True)
class Config:
    """The content of a config.json: the family, its decoder, and ids of the vocabulary."""

    family: Family
    decoder: DecoderSpec
    raw: Mapping[str, Any]
    initializer_range: float
    dtype: str | None
    """The dtype that the config declares, None if it declares none; the tensors decide."""
    bos_id: int | None
    eos_ids: tuple[int, ...]
    bos_given: bool
    eos_given: bool
    """False if `eos_ids` is the default of the architecture."""
    quantization: str
    """The method of a load-time quantization, which may be a leftover, or the format of stored experts; the tensors
    decide."""
    ignored: Mapping[str, str]
    """Unused key to the reason."""
    accepted: tuple[str, ...]
    """Unknown keys that the user accepted."""
    notes: tuple[str, ...]
    """Values that were resolved or filled in."""
    parts: Mapping[str, str] = field(default_factory=dict)
    """Modules beside the text model, to what they are; llmc leaves them out."""
    stored_head_counts: bool = False
    """If the files hold a head, it is read although the config says that the embedding is the head."""

    @property
    def rope_is_dynamic(self) -> bool:
        """True if the rope type extends the model to any context, beyond the positions it was trained for."""
        return not self.decoder.limit and all(
            rope.type == "dynamic" for layer in self.decoder.layers if (rope := layer.mixer.rope)
        )

    def require_positions(self, asked: int, refusal: str, flag: str) -> None:
        """Check that the model has so many positions; `refusal` begins the error, `flag` is what sets them.

        Raises:
            RecipeError: it was trained, or is computed, for fewer, and its rope type is not dynamic.
        """
        limit = self.decoder.positions
        if asked > limit and not self.rope_is_dynamic:
            why = self.decoder.limit and f": {self.decoder.limit}"
            raise RecipeError(refusal, found=f"a model of {limit} positions{why}", fix=f"{flag} {limit} or less")


def parse_config(data: bytes | str, *, accept: Collection[str] = (), what: str = "config.json") -> Config:
    """Read config.json; `accept` names unknown keys that the user knows to be harmless, `what` the file in errors.

    Raises:
        CheckpointError: the file is damaged or contradictory, a value is out of range, or keys are unknown.
        Unsupported: the config asks for something that llmc does not compute.
        RecipeError: a key in `accept` is not in the file, or is not an unknown key.
    """
    raw = load_object(data, what)
    row, notes = row_of(raw), list[str]()
    if row is None:
        family, part = _alone(raw, accept, what, notes)
    else:
        kind, part = text_part(raw, row, FAMILIES, accept, what)
        family = _within(row, kind)
    values, ignored = part.values, part.ignored
    notes += [f"accepting {key} changes nothing: {ignored[key]}" for key in sorted(ignored.keys() & set(accept))]
    notes += [f"{key}: {HARMLESS[key]}" for key in raw if key in REMOTE_CODE and raw[key]]
    reading = ConfigReader(values, family, part.what)
    quantization = _quantization(reading.fields, family)
    decoder = reading.decoder(family)
    bos_id, eos_ids = _token_ids(reading.fields, values, decoder.vocab_size, notes)
    return Config(
        family=family,
        decoder=decoder,
        raw=raw,
        initializer_range=reading.fields.number("initializer_range", 0.0, 1.0, 0.02),
        dtype=_dtype(reading.fields, notes),
        bos_id=bos_id,
        eos_ids=eos_ids,
        bos_given="bos_token_id" in values,
        eos_given="eos_token_id" in values,
        quantization=quantization,
        ignored={**ignored, **reading.ignored},
        accepted=part.accepted,
        notes=(*notes, *reading.notes),
        parts=row.parts if row else {},
        stored_head_counts=row is not None and row.tied and decoder.tied,
    )


def _alone(raw: Mapping[str, Any], accept: Collection[str], what: str, notes: list[str]) -> tuple[Family, TextPart]:
    """The whole of a config, as the text model that it is."""
    values, found, clash = _lift_text_config(raw, what)
    notes += found
    family = _family(Fields(values, what))
    if clash is not None:
        raise clash
    ignored, accepted = classify_keys(values, accept, what, family.keys)
    return family, TextPart(values, what, ignored, accepted)


def _within(row: Row, kind: Kind) -> Family:
    """The family of a text model, as part of an architecture of images and text."""
    family = FAMILIES[kind.family]
    rope = family.rope if kind.theta is None else replace(family.rope, theta=kind.theta)
    return replace(family, architecture=row.architecture, defaults={**family.defaults, **kind.defaults}, rope=rope)


def _lift_text_config(raw: Mapping[str, Any], what: str) -> tuple[dict[str, Any], list[str], CheckpointError | None]:
    """Merge the keys of a nested text_config into those of the top; returns them, notes, and where both disagree."""
    inner = Fields(raw, what).table("text_config") or {}
    values = {key: value for key, value in raw.items() if key != "text_config"}
    notes, clash = [], None
    for key, value in inner.items():
        outer = values.get(key)
        if outer is None:
            values[key] = value
            if value is not None:
                notes.append(f"{key} = {shown(value)}: found in text_config only")
        elif outer != value and value is not None and key in COMMON and key not in ("architectures", "model_type"):
            clash = clash or CheckpointError(
                f'expected one value of "{key}" in {what}',
                found=f"{shown(outer)} at the top, {shown(value)} in text_config",
                fix="remove the one that is wrong",
            )
    return values, notes, clash


def _family(fields: Fields) -> Family:
    """The family that `architectures` names or, if that key is absent, `model_type`."""
    named, model_type = fields.values.get("architectures"), fields.text("model_type", "")

    def foreign(name: str, architecture: str) -> Unsupported:
        lacking = ", ".join(missing(architecture, model_type))
        return Unsupported(
            f"expected an architecture that `llmc families` lists in {fields.what}",
            found=f"{name}{lacking and f' (not computed: {lacking})'}, {nearest_kin(fields.values, FAMILIES.values())}",
            fix="a checkpoint of one of these architectures; docs/adding.md tells how llmc learns another",
        )

    if not named:
        implied = [family for family in (*FAMILIES.values(), *REMOTE.values()) if family.name == model_type]
        if not implied:
            raise foreign(f'no architectures, model_type "{model_type}"', "")
        return implied[0]
    if not isinstance(named, list) or len(named) != 1 or not isinstance(named[0], str):
        raise fields.refuse("architectures", "a list of one name")
    remote = REMOTE.get(model_type)
    if remote is not None and remote.architecture == named[0]:
        return remote
    family = FAMILIES.get(named[0]) or next((one for one in FAMILIES.values() if named[0] in one.also), None)
    if family is None:
        raise foreign(named[0], named[0])
    if model_type not in ("", family.name):
        if model_type not in {one.name for one in FAMILIES.values()}:
            raise foreign(f'{named[0]} of model_type "{model_type}"', named[0])
        raise CheckpointError(
            f'expected "architectures" and "model_type" of one family in {fields.what}',
            found=f'{named[0]} and "{model_type}"',
            fix="the config.json that belongs to these weights",
        )
    return family


def _dtype(fields: Fields, notes: list[str]) -> str | None:
    new, old = (fields.text(key, "auto").removeprefix("torch.") for key in ("dtype", "torch_dtype"))
    name = old if new == "auto" else new
    if name not in _DTYPES:
        raise Unsupported(f'expected "dtype" as one of {", ".join(_DTYPES)} in {fields.what}', found=shown(name))
    if "auto" not in (new, old) and new != old:
        notes.append(f"dtype = {new}: torch_dtype says {old}")
    return _DTYPES[name]


def _quantization(fields: Fields, family: Family) -> str:
    """ "", a format that files of the family are stored in, or "bitsandbytes".

    The settings of the last stay in merged models, because it quantizes while loading.
    """
    for key in ("quantization_config", "compression_config"):
        settings = fields.table(key)
        if settings is None:
            continue
        loading = any(name in settings for name in ("load_in_4bit", "load_in_8bit"))
        method = Fields(settings, f'"{key}" of {fields.what}').text(
            "quant_method", "bitsandbytes" if loading else "unnamed"
        )
        if method not in ("bitsandbytes", *family.stored):
            raise Unsupported(
                f'expected a checkpoint that is not quantized yet ("{key}" absent or null) in {fields.what}',
                found=f'quant_method "{method}"',
                fix="start from the original bf16, fp16 or fp32 checkpoint and quantize with --quantize",
            )
        return method
    return ""


def _token_ids(
    fields: Fields, given: Mapping[str, Any], vocab_size: int, notes: list[str]
) -> tuple[int | None, tuple[int, ...]]:
    """BOS and EOS ids. If absent, the architecture's default, provided the vocabulary has that id; null means none."""

    def has(key: str) -> bool:
        return key in given or max(fields.ids(key), default=0) < vocab_size

    # Only a note: llmc does not use padding, and many fine-tunes name an id one beyond the vocabulary.
    pad = fields.values.get("pad_token_id")
    if pad is not None and not is_int(pad, 0, vocab_size - 1):
        notes.append(f"pad_token_id = {shown(pad)}: not in the vocabulary of {vocab_size}; padding is not used")
    bos = fields.one_id("bos_token_id") if has("bos_token_id") else None
    return bos, fields.ids("eos_token_id") if has("eos_token_id") else ()
