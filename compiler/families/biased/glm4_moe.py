"""GLM-4.5, 4.6, 4.7 and Air: DeepSeek-V3's router and shared expert, ordinary attention, half of each head turns."""

from __future__ import annotations

from ...config.rope import RopeDefaults
from ..experts import deepseek_mixture
from ..reading import ConfigReader, Family
from ..spec import LayerSpec


def _layer(config: ConfigReader, index: int) -> LayerSpec:
    mixer = config.attention(bias=config.flag("attention_bias"), norms=config.flag("use_qk_norm"))
    return config.layer(mixer, deepseek_mixture(config, index))


FAMILY = Family(
    "glm4_moe",
    "Glm4MoeForCausalLM",
    _layer,
    defaults={
        "max_position_embeddings": 131072,
        "num_key_value_heads": 8,
        "rms_norm_eps": 1e-5,
        "attention_bias": None,
        "use_qk_norm": None,
        "first_k_dense_replace": 1,
        "moe_intermediate_size": 1408,
        "num_experts_per_tok": 8,
        "n_routed_experts": 128,
        "n_shared_experts": 1,
        "n_group": 1,
        "topk_group": 1,
        "norm_topk_prob": True,
        "routed_scaling_factor": 1.0,
        "num_mtp_layers": 1,
    },
    rope=RopeDefaults(share=0.5),
    mapped={"num_local_experts": "n_routed_experts", "num_nextn_predict_layers": "num_mtp_layers"},
    example={
        "n_routed_experts": 8,
        "num_experts_per_tok": 2,
        "moe_intermediate_size": 128,
        "n_group": 2,
        "routed_scaling_factor": 2.5,
        "attention_bias": True,
        "use_qk_norm": True,
    },
)
