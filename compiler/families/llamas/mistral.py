"""Mistral: Llama without biases; a window in the config holds for every layer."""

from __future__ import annotations

from ..reading import ConfigReader, Family
from ..spec import LayerSpec


def _layer(config: ConfigReader, index: int) -> LayerSpec:
    return config.layer(config.attention(window=config.integer("sliding_window", 1)), config.mlp())


FAMILY = Family(
    "mistral",
    "MistralForCausalLM",
    _layer,
    defaults={
        "max_position_embeddings": 4096 * 32,
        "num_key_value_heads": 8,
        "rms_norm_eps": 1e-6,
        "sliding_window": 4096,
        "bos_token_id": 1,
        "eos_token_id": 2,
    },
)
