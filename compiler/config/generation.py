"""generation_config.json: the sampling settings of a model, checked before they become the engine's defaults."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from .fields import Fields, load_object
from .keys import is_empty

_TOKENS = frozenset({"bos_token_id", "eos_token_id", "pad_token_id"})
_SILENT = """
    transformers_version _from_model_config use_cache cache_implementation cache_config return_dict_in_generate
    return_legacy_cache output_attentions output_hidden_states output_scores output_logits disable_compile
    compile_config max_cache_len prefill_chunk_size num_assistant_tokens num_assistant_tokens_schedule
    assistant_confidence_threshold assistant_lookbehind target_lookbehind is_assistant low_memory
"""
_ABOUT_THE_CALL = frozenset(_SILENT.split())
"""Keys that affect only a call of transformers, not the text."""
TOP_K = 50
_OFF = {
    "num_beams": 1,
    "num_beam_groups": 1,
    "num_return_sequences": 1,
    "typical_p": 1,
    "length_penalty": 1,
    "encoder_repetition_penalty": 1,
    "guidance_scale": 1,
}
"""The value that turns off a setting llmc does not support; 0 for settings not listed."""


@dataclass(frozen=True)
class Generation:
    """The content of a generation_config.json."""

    defaults: Mapping[str, float | int | bool] = field(default_factory=dict)
    """Those of do_sample, temperature, top_k, top_p, min_p, repetition_penalty, max_length and max_new_tokens that the
    file sets."""
    bos_id: int | None = None
    eos_ids: tuple[int, ...] = ()
    ignored: tuple[str, ...] = ()
    """Keys that would change the text, but that llmc does not support."""
    notes: tuple[str, ...] = ()


def parse_generation(data: bytes | str, *, what: str = "generation_config.json") -> Generation:
    """Read generation_config.json; `what` names it in errors.

    A top_k of -1 is an old spelling of off and becomes 0. Keys that are null count as absent. Where the file samples
    and has no top_k, it is 50, as in transformers 5.23.0 (GenerationConfig._get_default_generation_params); everything
    else that decides a token has a default there that changes nothing, as here.

    Raises:
        CheckpointError: the file is not JSON, or a key is malformed or out of range.
    """
    raw = load_object(data, what)
    fields = Fields(raw, what)
    top_k = fields.integer("top_k", -1, 2**31 - 1)
    found: dict[str, float | int | bool | None] = {
        "do_sample": fields.flag("do_sample", False) if fields.has("do_sample") else None,
        "temperature": fields.number("temperature", 0.0, 1e4),
        "top_k": None if top_k is None else max(top_k, 0),
        "top_p": fields.number("top_p", 0.0, 1.0, open_low=True),
        "min_p": fields.number("min_p", 0.0, 1.0),
        "repetition_penalty": fields.number("repetition_penalty", 0.0, 1e4, open_low=True),
        "max_length": fields.integer("max_length", 0, 2**31 - 1),
        "max_new_tokens": fields.integer("max_new_tokens", 0, 2**31 - 1),
    }
    notes = ()
    if found["do_sample"] and top_k is None:
        found["top_k"] = TOP_K
        notes = (
            f"generation_config.json samples and has no top_k: it is {TOP_K}, as in transformers (--top-k 0 is all)",
        )
    return Generation(
        notes=notes,
        defaults={key: value for key, value in found.items() if value is not None},
        bos_id=fields.one_id("bos_token_id"),
        eos_ids=fields.ids("eos_token_id"),
        ignored=tuple(sorted(key for key in raw.keys() - found.keys() - _TOKENS if _matters(key, raw[key]))),
    )


def _matters(key: str, value: Any) -> bool:
    return key not in _ABOUT_THE_CALL and not is_empty(value) and value != _OFF.get(key, 0)
