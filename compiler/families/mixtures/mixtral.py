"""Mixtral 8x7B and 8x22B: Mistral with two of eight experts in every layer, weighted by a softmax of their own."""

from __future__ import annotations

from ....runtime.dtypes import SOFTMAX
from ...config.rope import RopeDefaults
from ..experts import W1_W3_W2, count, mixture, router, stacks
from ..reading import ConfigReader, Family
from ..spec import LayerSpec

BLOCK = "block_sparse_moe"
"""The module of experts in published files."""
RENAMED = (f".{BLOCK}.", ".mlp.")
"""And in the memory of transformers 5."""


def _layer(config: ConfigReader, index: int) -> LayerSpec:
    experts = count(config, "num_local_experts")
    chooses = router(config, SOFTMAX, experts, module=f"{BLOCK}.gate", normed=True)
    linears = stacks(config, f"{BLOCK}.experts", experts, config.width, separate=W1_W3_W2)
    return config.layer(config.attention(window=config.integer("sliding_window", 1)), mixture(config, chooses, linears))


FAMILY = Family(
    "mixtral",
    "MixtralForCausalLM",
    _layer,
    defaults={
        "max_position_embeddings": 4096 * 32,
        "num_key_value_heads": 8,
        "rms_norm_eps": 1e-5,
        "sliding_window": None,
        "num_experts_per_tok": 2,
        "num_local_experts": 8,
        "bos_token_id": 1,
        "eos_token_id": 2,
    },
    rope=RopeDefaults(1_000_000.0),
    mapped={"num_experts": "num_local_experts"},
    renamed=(RENAMED,),
    example={"num_local_experts": 4},
)
