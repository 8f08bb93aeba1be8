"""DeepSeek-V3.2: DeepSeek-V3 as long as its indexer chooses all positions, of which there are as many at most."""

from __future__ import annotations

from ..latent import EXPERTS, INDEXER, KEYS, MAPPED, PUBLISHED, deepseek_layer, up_to_indexer
from ..reading import LOGITS, Family

FAMILY = Family(
    "deepseek_v32",
    "DeepseekV32ForCausalLM",
    deepseek_layer,
    decoder=up_to_indexer,
    defaults={
        **KEYS,
        **EXPERTS,
        **INDEXER,
        "num_key_value_heads": 128,
        "max_position_embeddings": 163840,
        "rms_norm_eps": 1e-6,
        "first_k_dense_replace": 3,
        "mlp_layer_types": None,
        "attention_bias": False,
        "mlp_bias": False,
        "bos_token_id": 0,
        "eos_token_id": 1,
    },
    fixed={**PUBLISHED, "rope_interleave": True},
    mapped={"num_experts": "n_routed_experts", **MAPPED},
    kinds=("indexed_attention",),
    verified=f"{LOGITS}, up to index_topk positions",
    example={"num_key_value_heads": 4, "n_routed_experts": 16, "n_group": 4, "topk_group": 2, "index_topk": 64},
)
