"""DeepSeek-V3 and R1: latent attention, and experts that a router with a bias and groups chooses."""

from __future__ import annotations

from ..experts import deepseek_mixture
from ..latent import EXPERTS, KEYS, MAPPED, PUBLISHED, latent
from ..reading import ConfigReader, Family
from ..spec import LayerSpec


def _layer(config: ConfigReader, index: int) -> LayerSpec:
    mixer = latent(config, interleaved=config.flag("rope_interleave"))
    return config.layer(mixer, deepseek_mixture(config, index))


FAMILY = Family(
    "deepseek_v3",
    "DeepseekV3ForCausalLM",
    _layer,
    defaults={
        **KEYS,
        **EXPERTS,
        "num_key_value_heads": 128,
        "max_position_embeddings": 4096,
        "rms_norm_eps": 1e-6,
        "first_k_dense_replace": 3,
        "rope_interleave": True,
        "attention_bias": False,
        "bos_token_id": 0,
        "eos_token_id": 1,
        "num_mtp_layers": 1,
    },
    fixed=PUBLISHED,
    mapped={**MAPPED, "num_nextn_predict_layers": "num_mtp_layers"},
    example={"num_key_value_heads": 4, "n_routed_experts": 16, "n_group": 4, "topk_group": 2},
)
