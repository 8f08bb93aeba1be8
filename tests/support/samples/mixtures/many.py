"""Small models with experts of many kinds: Mixtral, OLMoE, Phi 3.5 MoE, Granite, MiniMax-M2, ERNIE 4.5."""

from __future__ import annotations

from typing import Any

import torch
from support.samples.families import Case, Sample

_PLAIN = {"pad_token_id": None}
_LOCAL = {"num_local_experts": 8, "num_experts_per_tok": 3, "intermediate_size": 48}
_ALL_OF_THREE = {"num_local_experts": 3, "num_experts_per_tok": 3}
_PHI = {**_PLAIN, "num_local_experts": 6, "intermediate_size": 48, "attention_bias": True, "lm_head_bias": True}
_GRANITE = {"embedding_multiplier": 2.0, "logits_scaling": 3.0, "residual_multiplier": 0.7, "attention_multiplier": 0.2}
_ERNIE = {"moe_num_experts": 8, "moe_k": 3, "moe_intermediate_size": 32, "moe_num_shared_experts": 2}


def _long(size: int) -> dict[str, Any]:
    """A LongRoPE with other factors beyond 16 positions, which transformers does not take."""
    return {
        "rope_type": "longrope",
        "rope_theta": 1e4,
        "short_factor": [1.0 + 0.1 * one for one in range(size // 2)],
        "long_factor": [3.0 + 0.5 * one for one in range(size // 2)],
        "short_mscale": 1.3,
        "long_mscale": 1.3,
        "original_max_position_embeddings": 16,
    }


def _spell_minimax_old(config: dict[str, Any]) -> None:
    """As MiniMax's own files have it, beside keys of its other models."""
    config |= {"rotary_dim": 8, "attn_type_list": [1] * config["num_hidden_layers"], "use_qk_norm": True}
    config |= {"qk_norm_type": "per_layer", "scoring_func": "sigmoid", "use_routing_bias": True, "num_mtp_modules": 3}
    config |= {"shared_intermediate_size": 0, "mtp_transformer_layers": 1, "use_mtp": True}
    del config["partial_rotary_factor"]


def _spell_ernie_old(config: dict[str, Any]) -> None:
    config |= {"moe_capacity": [64, 64, 64], "moe_gate": "topk", "moe_use_aux_free": True, "use_rmsnorm": True}


SAMPLES = (
    Sample(
        "mixtral",
        {
            "window": Case(
                {**_LOCAL, "sliding_window": 8, "rope_parameters": {"rope_type": "default", "rope_theta": 1e4}}
            ),
            "old spelling, one expert of four": Case(
                {"num_local_experts": 4, "num_experts_per_tok": 1, "head_dim": 24, "hidden_act": "gelu"},
                torch.bfloat16,
                sharded=True,
                old=True,
            ),
            "all experts chosen, tied": Case({**_ALL_OF_THREE, "tie_word_embeddings": True}, torch.float16),
        },
        wide={"num_local_experts": 3, "intermediate_size": 128},
    ),
    Sample(
        "olmoe",
        {
            "normed weights, biases": Case(
                {
                    **_PLAIN,
                    "num_experts": 8,
                    "num_experts_per_tok": 3,
                    "norm_topk_prob": True,
                    "attention_bias": True,
                    "num_key_value_heads": 4,
                }
            ),
            "one kv head, old spelling": Case(
                {**_PLAIN, "num_experts": 5, "num_experts_per_tok": 2, "num_key_value_heads": 1},
                torch.bfloat16,
                sharded=True,
                old=True,
            ),
        },
        wide={"num_experts": 3, "intermediate_size": 128},
    ),
    Sample(
        "phimoe",
        {
            "a rope of its own, biases": Case({**_PHI, "router_jitter_noise": 0.3, "rope_parameters": _long(16)}),
            "window, old spelling": Case(
                {**_PHI, "lm_head_bias": False, "sliding_window": 8, "rope_parameters": _long(24), "hidden_size": 96},
                torch.bfloat16,
                sharded=True,
                old=True,
            ),
            "plain rope, no biases": Case(
                {**_PHI, "attention_bias": False, "router_jitter_noise": 0.0, "num_key_value_heads": 1}, torch.float16
            ),
        },
        wide={
            # both experts of two weigh 1: no choice that rounding might change
            "num_hidden_layers": 1,
            "num_local_experts": 2,
            "router_jitter_noise": 0.0,
            "intermediate_size": 128,
            "rope_parameters": _long(32),
        },
        centres={"norm.bias": 0.0, "norm": 1.0},
    ),
    Sample(
        "granitemoe",
        {
            "four factors, biases": Case({**_PLAIN, **_LOCAL, **_GRANITE, "attention_bias": True}),
            "tied, old spelling": Case(
                {
                    **_PLAIN,
                    **_GRANITE,
                    "num_local_experts": 5,
                    "num_experts_per_tok": 2,
                    "tie_word_embeddings": True,
                    "num_key_value_heads": 1,
                },
                torch.bfloat16,
                sharded=True,
                old=True,
            ),
            "all experts chosen": Case({**_PLAIN, **_ALL_OF_THREE, "hidden_size": 96}, torch.float16),
        },
        wide={"num_local_experts": 3, "intermediate_size": 128},
    ),
    Sample(
        "minimax_m2",
        {
            "half of a head turns": Case({**_LOCAL, "head_dim": 24, "rotary_dim": 12, "num_key_value_heads": 4}),
            "old spelling, one kv head": Case(
                {**_LOCAL, "head_dim": 16, "num_key_value_heads": 1, "rotary_dim": 8},
                torch.bfloat16,
                sharded=True,
                old=True,
            ),
            "whole heads turn, all experts chosen": Case({**_ALL_OF_THREE, "head_dim": 16}, torch.float16),
        },
        wide={"num_local_experts": 3, "intermediate_size": 128, "rotary_dim": 16},
        old=_spell_minimax_old,
    ),
    Sample(
        "ernie4_5_moe",
        {
            "shared experts, biases": Case({**_PLAIN, **_ERNIE, "num_hidden_layers": 3, "use_bias": True}),
            "each second of some layers, old spelling": Case(
                {
                    **_PLAIN,
                    **_ERNIE,
                    "num_hidden_layers": 6,
                    "moe_layer_interval": 2,
                    "moe_layer_start_index": 2,
                    "moe_layer_end_index": 4,
                    "moe_num_shared_experts": 0,
                    "tie_word_embeddings": False,
                },
                torch.bfloat16,
                sharded=True,
                old=True,
            ),
            "a large floor": Case({**_PLAIN, **_ERNIE, "moe_norm_min": 0.9, "moe_layer_start_index": 0}, torch.float16),
        },
        wide={
            "moe_num_experts": 3,
            "moe_intermediate_size": 128,
            "num_hidden_layers": 2,
        },
        old=_spell_ernie_old,
    ),
)
