"""Granite with windows: sinks of each head, a window in three of four layers, a theta for each layer or no rope."""

from __future__ import annotations

from dataclasses import replace

from ...config.fields import is_number
from ...config.rope import RopeConfig
from ..reading import ConfigReader, Family
from ..spec import LayerSpec, Parameter
from .granite import FAMILY as GRANITE


def _rope(config: ConfigReader, index: int, rope: RopeConfig | None) -> RopeConfig | None:
    """The rope with the layer's theta of `layer_rope_theta`, where 0 is a layer without."""
    fields, listed = config.fields, config.fields.values.get("layer_rope_theta")
    if listed is None or rope is None:
        return rope
    if not isinstance(listed, list) or len(listed) < config.layers or not all(map(_is_theta, listed)):
        raise fields.refuse("layer_rope_theta", f"a list of 0 or a number over 1 for each of {config.layers} layers")
    return replace(rope, theta=float(listed[index])) if listed[index] else None


def _is_theta(one: object) -> bool:
    return is_number(one, 1.0, 1e15, open_low=True) or is_number(one, 0.0, 0.0)


def _layer(config: ConfigReader, index: int) -> LayerSpec:
    layer, kinds = GRANITE.layer(config, index), config.kinds()
    windowed = kinds[index] == "sliding_attention" if kinds else index % 4 != 0
    window = config.fields.need_integer("sliding_window", 1, 2**31 - 1) if windowed else None
    rope, sinks = _rope(config, index, layer.mixer.rope), Parameter("self_attn.sinks", (config.heads,))
    return replace(layer, mixer=replace(layer.mixer, window=window, rope=rope, sinks=sinks))


_SIZES = {"max_position_embeddings": 8192, "num_key_value_heads": 4, "sliding_window": 128, "layer_rope_theta": None}
_OTHERS = {"bos_token_id": 100257, "eos_token_id": 100257, "tie_word_embeddings": True, "rms_norm_eps": 1e-5}
DEFAULTS = {**GRANITE.defaults, **_SIZES, **_OTHERS}
EXAMPLE = {**GRANITE.example, "layer_rope_theta": [0, 1e4, 1e6] * 4}
FAMILY = Family("granite_swa", "GraniteSWAForCausalLM", _layer, DEFAULTS, GRANITE.decoder, example=EXAMPLE)
