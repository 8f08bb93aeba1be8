"""GLM-4 of 2024: half of each head is rotated, in neighbouring pairs; gate and up are one tensor."""

from __future__ import annotations

from ...config.rope import RopeDefaults
from ..reading import ConfigReader, Family
from ..spec import LayerSpec


def layer(config: ConfigReader, index: int) -> LayerSpec:
    mixer = config.attention(bias=config.flag("attention_bias"))
    return config.layer(mixer, config.mlp(fused="mlp.gate_up_proj"))


FAMILY = Family(
    "glm",
    "GlmForCausalLM",
    layer,
    defaults={
        "head_dim": 128,
        "num_key_value_heads": 2,
        "max_position_embeddings": 131072,
        "rms_norm_eps": 0.00000015625,
        "attention_bias": True,
        "eos_token_id": [151329, 151336, 151338],
    },
    rope=RopeDefaults(share=0.5, interleaved=True),
)
