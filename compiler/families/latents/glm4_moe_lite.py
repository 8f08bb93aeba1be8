"""GLM-4.7-Flash: DeepSeek-V3's layers, of which the first has no experts."""

from __future__ import annotations

from ..latent import EXPERTS, KEYS, MAPPED, PUBLISHED, latent, mixture_or_dense
from ..reading import ConfigReader, Family
from ..spec import LayerSpec


def _layer(config: ConfigReader, index: int) -> LayerSpec:
    mixer = latent(config, interleaved=config.flag("rope_interleave"))
    return config.layer(mixer, mixture_or_dense(config, index, 1))


FAMILY = Family(
    "glm4_moe_lite",
    "Glm4MoeLiteForCausalLM",
    _layer,
    defaults={
        **KEYS,
        **EXPERTS,
        "q_lora_rank": 768,
        "qk_nope_head_dim": 192,
        "v_head_dim": 256,
        "num_key_value_heads": 20,
        "max_position_embeddings": 202752,
        "rms_norm_eps": 1e-5,
        "moe_intermediate_size": 1536,
        "n_routed_experts": 64,
        "routed_scaling_factor": 1.8,
        "n_group": 1,
        "topk_group": 1,
        "num_experts_per_tok": 4,
        "mlp_layer_types": None,
        "rope_interleave": True,
        "attention_bias": False,
        "bos_token_id": 0,
        "eos_token_id": 1,
    },
    fixed={**PUBLISHED, "first_k_dense_replace": 1},
    mapped=MAPPED,
    example={"num_key_value_heads": 4},
)
