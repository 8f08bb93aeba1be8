"""SmolLM 3: Llama in which every fourth layer knows no positions; windows, if any, are of those layers."""

from __future__ import annotations

from dataclasses import replace

from ...config.fields import is_int
from ...config.rope import RopeDefaults
from ..reading import ConfigReader, Family
from ..spec import LayerSpec
from .llama import FAMILY as LLAMA


def _has_rope(config: ConfigReader, index: int) -> bool:
    """`no_rope_layers` has a 1 for each layer with a rope."""
    fields, listed = config.fields, config.fields.values.get("no_rope_layers")
    if listed is None:
        return (index + 1) % fields.need_integer("no_rope_layer_interval", 1, 4096) != 0
    if not isinstance(listed, list) or len(listed) < config.layers or not all(is_int(one, 0, 1) for one in listed):
        raise fields.refuse("no_rope_layers", f"a list of 0 or 1 for each of num_hidden_layers ({config.layers})")
    return listed[index] == 1


def _layer(config: ConfigReader, index: int) -> LayerSpec:
    layer, kinds, turned = LLAMA.layer(config, index), config.kinds(), _has_rope(config, index)
    windowed = kinds[index] == "sliding_attention" if kinds else not turned
    window = config.integer("sliding_window", 1) if config.flag("use_sliding_window") and windowed else None
    return replace(layer, mixer=replace(layer.mixer, window=window, rope=layer.mixer.rope if turned else None))


_LAYERS = {"use_sliding_window": None, "sliding_window": None, "no_rope_layers": None, "no_rope_layer_interval": 4}
_TOKENS = {"bos_token_id": 128000, "eos_token_id": 128001, "tie_word_embeddings": True}
FAMILY = Family(
    "smollm3",
    "SmolLM3ForCausalLM",
    _layer,
    defaults={**LLAMA.defaults, **_LAYERS, **_TOKENS, "max_position_embeddings": 32768, "num_key_value_heads": 4},
    rope=RopeDefaults(2e6),
)
