"""Seed-OSS: Llama whose q, k and v have biases, and whose output of attention has a switch of its own for one."""

from __future__ import annotations

from ..reading import ConfigReader, Family
from ..spec import LayerSpec


def _layer(config: ConfigReader, index: int) -> LayerSpec:
    mixer = config.attention(bias=config.flag("attention_bias"), output_bias=config.flag("attention_out_bias"))
    return config.layer(mixer, config.mlp(bias=config.flag("mlp_bias")))


FAMILY = Family(
    "seed_oss",
    "SeedOssForCausalLM",
    _layer,
    defaults={
        "max_position_embeddings": 524288,
        "num_key_value_heads": 8,
        "head_dim": 128,
        "rms_norm_eps": 1e-6,
        "attention_bias": True,
        "attention_out_bias": None,
        "mlp_bias": None,
        "bos_token_id": 0,
        "eos_token_id": 2,
    },
)
