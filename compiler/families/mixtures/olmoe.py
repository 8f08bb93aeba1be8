"""OLMoE: softmax-routed experts in every layer, and norms over all heads of q and of k together."""

from __future__ import annotations

from ....runtime.dtypes import SOFTMAX
from ..experts import count, mixture, router, stacks
from ..norms.olmo2 import attention
from ..reading import ConfigReader, Family
from ..spec import LayerSpec


def _layer(config: ConfigReader, index: int) -> LayerSpec:
    config.only({"clip_qkv": None})
    experts = count(config, "num_experts")
    chooses = router(config, SOFTMAX, experts, normed=config.flag("norm_topk_prob"))
    linears = stacks(config, "mlp.experts", experts, config.width)
    return config.layer(attention(config), mixture(config, chooses, linears))


FAMILY = Family(
    "olmoe",
    "OlmoeForCausalLM",
    _layer,
    defaults={
        "max_position_embeddings": 4096,
        "rms_norm_eps": 1e-5,
        "attention_bias": None,
        "clip_qkv": None,
        "num_experts_per_tok": 8,
        "num_experts": 64,
        "norm_topk_prob": False,
        "eos_token_id": 50279,
    },
    mapped={"num_local_experts": "num_experts"},
    example={"num_experts": 8, "norm_topk_prob": True, "attention_bias": True},
)
