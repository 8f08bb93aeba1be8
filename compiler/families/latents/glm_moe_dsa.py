"""GLM-5: DeepSeek-V3.2 whose layers may share what an indexer chooses."""

from __future__ import annotations

from dataclasses import replace

from .deepseek_v32 import FAMILY as DEEPSEEK_V32

FAMILY = replace(
    DEEPSEEK_V32,
    name="glm_moe_dsa",
    architecture="GlmMoeDsaForCausalLM",
    defaults={
        **DEEPSEEK_V32.defaults,
        "q_lora_rank": 2048,
        "qk_nope_head_dim": 192,
        "v_head_dim": 256,
        "num_key_value_heads": 64,
        "max_position_embeddings": 202752,
        "rms_norm_eps": 1e-5,
        "n_group": 1,
        "topk_group": 1,
        "index_n_heads": 32,
        "indexer_types": None,
        "index_topk_pattern": None,
        "index_topk_freq": None,
        "index_skip_topk_offset": None,
    },
    fixed={**DEEPSEEK_V32.fixed, "indexer_rope_interleave": True},
    example={"num_key_value_heads": 4, "index_topk": 64},
)
