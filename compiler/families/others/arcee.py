"""Arcee's AFM: Llama with an MLP that has no gate, and squared ReLU."""

from __future__ import annotations

from ..reading import ConfigReader, Family
from ..spec import LayerSpec


def _layer(config: ConfigReader, index: int) -> LayerSpec:
    bias = config.flag("attention_bias")
    mlp = config.plain_mlp("mlp.up_proj", "mlp.down_proj", bias=config.flag("mlp_bias"))
    return config.layer(config.attention(bias=bias, output_bias=bias), mlp)


FAMILY = Family(
    "arcee",
    "ArceeForCausalLM",
    _layer,
    defaults={
        "hidden_act": "relu2",
        "max_position_embeddings": 4096,
        "rms_norm_eps": 1e-5,
        "attention_bias": None,
        "mlp_bias": None,
        "bos_token_id": 128000,
        "eos_token_id": 128001,
    },
)
