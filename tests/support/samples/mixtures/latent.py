"""Small models with latent attention, and the experts that their families have beside it."""

from __future__ import annotations

from typing import Any

import torch
from support.samples.families import Case, Sample

_SIZES: dict[str, Any] = {
    "num_key_value_heads": 4,
    "kv_lora_rank": 24,
    "q_lora_rank": 40,
    "qk_nope_head_dim": 16,
    "qk_rope_head_dim": 8,
    "v_head_dim": 12,
}
_EXPERTS: dict[str, Any] = {
    "moe_intermediate_size": 32,
    "n_routed_experts": 8,
    "n_shared_experts": 1,
    "num_experts_per_tok": 3,
    "first_k_dense_replace": 1,
}
_GROUPS = {"n_group": 4, "topk_group": 2}
_YARN: dict[str, Any] = {
    "rope_type": "yarn",
    "rope_theta": 10000.0,
    "factor": 4.0,
    "original_max_position_embeddings": 16,
    "beta_fast": 32.0,
    "beta_slow": 1.0,
    "mscale": 0.707,
    "mscale_all_dim": 0.707,
}
_WIDE: dict[str, Any] = {
    "num_key_value_heads": 4,
    "head_dim": 8,
    "kv_lora_rank": 128,
    "q_lora_rank": 128,
    "v_head_dim": 32,
    "moe_intermediate_size": 128,
    "n_routed_experts": 4,
    "num_experts_per_tok": 4,
    "n_group": 1,
    "topk_group": 1,
}
"""All experts compute each token: formats that round activations would choose others where two are nearly equal."""
_V3: dict[str, Any] = {**_SIZES, **_EXPERTS, **_GROUPS, "num_mtp_layers": 0}
_PLAIN: dict[str, Any] = {**_V3, "q_lora_rank": None, "n_group": 1, "topk_group": 1, "norm_topk_prob": False}
_KINDS = ["sparse", "dense"]


def _old(config: dict[str, Any]) -> None:
    """As DeepSeek's files have it: `num_mtp_layers` has another name."""
    config["num_nextn_predict_layers"] = config.pop("num_mtp_layers", 0)
    config |= {"ep_size": 1, "seq_aux": True, "aux_loss_alpha": 0.001, "moe_layer_freq": 1, "scoring_func": "sigmoid"}
    config["topk_method"] = "noaux_tc"


def _old_v2(config: dict[str, Any]) -> None:
    config |= {"ep_size": 1, "seq_aux": True, "aux_loss_alpha": 0.001, "moe_layer_freq": 1, "scoring_func": "softmax"}


SAMPLES = (
    Sample(
        "deepseek_v2",
        {
            "groups, yarn with mscale": Case(
                {
                    **_SIZES,
                    **_EXPERTS,
                    **_GROUPS,
                    "n_shared_experts": 2,
                    "topk_method": "group_limited_greedy",
                    "routed_scaling_factor": 1.7,
                    "norm_topk_prob": True,
                    "rope_parameters": _YARN,
                }
            ),
            "greedy, queries without a rank, biases, old spelling": Case(
                {
                    **_SIZES,
                    **_EXPERTS,
                    "q_lora_rank": None,
                    "attention_bias": True,
                    "mlp_bias": True,
                    "rope_parameters": {**_YARN, "mscale_all_dim": 1.0},
                },
                torch.bfloat16,
                sharded=True,
                old=True,
            ),
            "experts everywhere": Case(
                {**_SIZES, **_EXPERTS, "first_k_dense_replace": 0, "num_attention_heads": 8, "num_key_value_heads": 8},
                torch.float16,
            ),
        },
        wide={**_WIDE, "topk_method": "greedy"},
        old=_old_v2,
        one_kv_head={},
    ),
    Sample(
        "deepseek_v3",
        {
            "groups, yarn with mscale": Case({**_V3, "rope_parameters": {**_YARN, "mscale_all_dim": 1.0}}),
            "old spelling, biases": Case(
                {**_V3, "attention_bias": True, "rope_parameters": {**_YARN, "mscale": 1.0, "mscale_all_dim": 1.0}},
                torch.bfloat16,
                sharded=True,
                old=True,
            ),
            "queries without a rank, rope of halves, weights as they are": Case(
                {**_PLAIN, "rope_interleave": False, "first_k_dense_replace": 0}, torch.float16
            ),
        },
        wide=_WIDE,
        old=_old,
        one_kv_head={},
    ),
    Sample(
        "glm4_moe_lite",
        {
            "groups": Case({**_SIZES, **_EXPERTS, **_GROUPS, "num_hidden_layers": 3}),
            "old spelling, its own kinds of layers": Case(
                {**_SIZES, **_EXPERTS, "mlp_layer_types": _KINDS, "attention_bias": True},
                torch.bfloat16,
                sharded=True,
                old=True,
            ),
            "queries without a rank, rope of halves": Case(
                {**_SIZES, **_EXPERTS, "q_lora_rank": None, "rope_interleave": False, "norm_topk_prob": False},
                torch.float16,
            ),
        },
        wide=_WIDE,
        old=_old,
        one_kv_head={},
    ),
    Sample(
        "mistral4",
        {
            "queries grow, groups": Case(
                {
                    **_SIZES,
                    **_EXPERTS,
                    **_GROUPS,
                    "rope_parameters": {**_YARN, "mscale_all_dim": 1.0, "llama_4_scaling_beta": 0.3},
                }
            ),
            "one group, rope of halves": Case(
                {
                    **_SIZES,
                    **_EXPERTS,
                    "first_k_dense_replace": 0,
                    "rope_interleave": False,
                    "norm_topk_prob": False,
                    "routed_scaling_factor": 1.5,
                    "rope_parameters": {**_YARN, "mscale": 1.0, "mscale_all_dim": 1.0, "llama_4_scaling_beta": 0.1},
                },
                torch.bfloat16,
                sharded=True,
            ),
            "queries without a rank, biases": Case(
                {
                    **_SIZES,
                    **_EXPERTS,
                    "q_lora_rank": None,
                    "attention_bias": True,
                    "rope_parameters": {**_YARN, "llama_4_scaling_beta": 0.5, "original_max_position_embeddings": 8},
                },
                torch.float16,
            ),
        },
        wide=_WIDE,
        one_kv_head={},
    ),
    Sample(
        "deepseek_v32",
        {
            "an indexer that chooses all": Case(
                {**_SIZES, **_EXPERTS, **_GROUPS, "index_topk": 48, "index_head_dim": 16, "index_n_heads": 2}
            ),
            "old spelling, biases, yarn": Case(
                {
                    **_SIZES,
                    **_EXPERTS,
                    **_GROUPS,
                    "index_topk": 40,
                    "index_head_dim": 16,
                    "index_n_heads": 2,
                    "attention_bias": True,
                    "rope_parameters": {**_YARN, "mscale_all_dim": 1.0},
                },
                torch.bfloat16,
                sharded=True,
                old=True,
            ),
        },
        wide={**_WIDE, "index_topk": 64, "num_hidden_layers": 1, "first_k_dense_replace": 0},
        old=_old,
        one_kv_head={},
    ),
    Sample(
        "glm_moe_dsa",
        {
            "an indexer that chooses all": Case(
                {**_SIZES, **_EXPERTS, **_GROUPS, "index_topk": 48, "index_head_dim": 16, "index_n_heads": 2}
            ),
            "layers share what it chooses": Case(
                {
                    **_SIZES,
                    **_EXPERTS,
                    "num_hidden_layers": 3,
                    "indexer_types": ["full", "shared", "full"],
                    "index_topk": 64,
                    "index_head_dim": 16,
                    "index_n_heads": 2,
                },
                torch.bfloat16,
            ),
        },
        wide={**_WIDE, "index_topk": 64, "num_hidden_layers": 1, "first_k_dense_replace": 0},
        old=_old,
        one_kv_head={},
    ),
)
