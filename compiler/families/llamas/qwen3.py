"""Qwen 3: a norm on each head of q and k before rope; the head size is independent of the hidden size."""

from __future__ import annotations

from ..reading import ConfigReader, Family
from ..spec import LayerSpec
from .qwen2 import FAMILY as QWEN2
from .qwen2 import window


def _layer(config: ConfigReader, index: int) -> LayerSpec:
    bias = config.flag("attention_bias")
    mixer = config.attention(bias=bias, output_bias=bias, norms=True, window=window(config, index))
    return config.layer(mixer, config.mlp())


FAMILY = Family(
    "qwen3",
    "Qwen3ForCausalLM",
    _layer,
    defaults={**QWEN2.defaults, "head_dim": 128, "attention_bias": None},
    example={**QWEN2.example, "attention_bias": True},
)
