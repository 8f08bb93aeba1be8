"""Llama 2, 3, 3.1, 3.2, 3.3 and the many checkpoints of the same shape."""

from __future__ import annotations

from ..reading import ConfigReader, Family
from ..spec import LayerSpec


def _layer(config: ConfigReader, index: int) -> LayerSpec:
    bias = config.flag("attention_bias")
    return config.layer(config.attention(bias=bias, output_bias=bias), config.mlp(bias=config.flag("mlp_bias")))


FAMILY = Family(
    "llama",
    "LlamaForCausalLM",
    _layer,
    defaults={
        "max_position_embeddings": 2048,
        "attention_bias": None,
        "mlp_bias": None,
        "bos_token_id": 1,
        "eos_token_id": 2,
        "rms_norm_eps": 1e-6,
    },
    example={"attention_bias": True, "mlp_bias": True},
)
