"""Small models with DeepSeek-V3's router: GLM-4.5, dots.llm1, and Hunyuan 3, which has no groups."""

from __future__ import annotations

from typing import Any

import torch
from support.samples.families import Case, Sample

_ROUTED = {"n_routed_experts": 8, "num_experts_per_tok": 2, "moe_intermediate_size": 32, "n_shared_experts": 1}
_GROUPS = {"n_routed_experts": 12, "num_experts_per_tok": 3, "n_group": 4, "topk_group": 2}
_HUNYUAN = {"num_experts": 8, "num_experts_per_tok": 3, "moe_intermediate_size": 32, "head_dim": 24}
_FEW = {"n_routed_experts": 3, "num_experts_per_tok": 3, "n_group": 1, "topk_group": 1, "moe_intermediate_size": 128}


def _spell_dots_old(config: dict[str, Any]) -> None:
    config |= {"scoring_func": "noaux_tc", "moe_layer_freq": 1, "aux_loss_alpha": 0.001, "seq_aux": True, "ep_size": 1}


def _spell_hunyuan_old(config: dict[str, Any]) -> None:
    """As Tencent's own files have it."""
    config |= {"qk_norm": True, "route_norm": True, "moe_router_use_sigmoid": True, "first_k_dense_replace": 1}
    config |= {"moe_router_enable_expert_bias": True, "expert_hidden_dim": config["moe_intermediate_size"]}
    config |= {"enable_lm_head_fp32": True, "enable_attention_fp32_softmax": False}
    config["num_nextn_predict_layers"] = 1
    del config["mlp_layer_types"]


SAMPLES = (
    Sample(
        "glm4_moe",
        {
            "groups, norms of heads, biases": Case(
                {
                    **_ROUTED,
                    **_GROUPS,
                    "use_qk_norm": True,
                    "attention_bias": True,
                    "routed_scaling_factor": 2.5,
                    "num_hidden_layers": 3,
                }
            ),
            "two dense layers, two shared experts, old spelling": Case(
                {
                    **_ROUTED,
                    "n_shared_experts": 2,
                    "num_hidden_layers": 4,
                    "first_k_dense_replace": 2,
                    "head_dim": 24,
                    "num_key_value_heads": 1,
                },
                torch.bfloat16,
                sharded=True,
                old=True,
            ),
            "weights as they are": Case(
                {**_ROUTED, "norm_topk_prob": False, "first_k_dense_replace": 0, "num_mtp_layers": 0}, torch.float16
            ),
        },
        wide={**_FEW, "num_hidden_layers": 2},
    ),
    Sample(
        "dots1",
        {
            "groups, windows of the last layers": Case(
                {
                    **_ROUTED,
                    **_GROUPS,
                    "n_shared_experts": 2,
                    "num_hidden_layers": 3,
                    "max_window_layers": 1,
                    "sliding_window": 8,
                    "first_k_dense_replace": 1,
                    "attention_bias": True,
                    "norm_topk_prob": True,
                    "routed_scaling_factor": 2.5,
                }
            ),
            "old spelling": Case(
                {**_ROUTED, "sliding_window": None, "num_key_value_heads": 1, "first_k_dense_replace": 1},
                torch.bfloat16,
                sharded=True,
                old=True,
            ),
        },
        wide={**_FEW, "num_hidden_layers": 2},
        old=_spell_dots_old,
    ),
    Sample(
        "hy_v3",
        {
            "biases, two shared experts": Case(
                {
                    **_HUNYUAN,
                    "attention_bias": True,
                    "mlp_bias": True,
                    "num_shared_experts": 2,
                    "mlp_layer_types": ["sparse", "dense", "sparse"],
                    "num_hidden_layers": 3,
                    "rope_parameters": {"rope_type": "default", "rope_theta": 1e4},
                }
            ),
            "old spelling": Case({**_HUNYUAN, "num_key_value_heads": 1}, torch.bfloat16, sharded=True, old=True),
            "another factor, tied": Case(
                {**_HUNYUAN, "router_scaling_factor": 1.0, "tie_word_embeddings": True}, torch.float16
            ),
        },
        wide={
            "num_experts": 3,
            "moe_intermediate_size": 128,
            "num_hidden_layers": 2,
            "mlp_layer_types": ["dense", "sparse"],
        },
        old=_spell_hunyuan_old,
    ),
)
