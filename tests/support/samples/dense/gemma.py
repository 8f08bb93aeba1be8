"""Small Gemmas: windows of 8 where the models have thousands, heads of 32 and 48."""

from __future__ import annotations

from typing import Any

import torch
from support.samples.families import Case, Sample

_HEAD = {"head_dim": 32, "bos_token_id": 1}
_WINDOWS = {**_HEAD, "sliding_window": 8}
_THREE = ["sliding_attention", "full_attention", "sliding_attention"]
_ROPES = {
    "full_attention": {"rope_type": "linear", "rope_theta": 5e4, "factor": 8.0},
    "sliding_attention": {"rope_type": "default", "rope_theta": 2e3},
}


def _spell_old(config: dict[str, Any]) -> None:
    """As Google's own files name what transformers saves layer by layer; their rope_parameters are nested."""
    layers = config.pop("per_layer_config")
    config["global_head_dim"] = layers["1"]["head_dim"]
    config["layer_types"] = _GEMMA4["layer_types"]
    for key in ("rope_theta", "rope_scaling", "rope_local_base_freq", "partial_rotary_factor"):
        config.pop(key, None)
    config["rope_parameters"] = None


_GEMMA4: dict[str, Any] = {
    **_WINDOWS,
    "global_head_dim": 48,
    "num_hidden_layers": 6,
    "num_kv_shared_layers": 3,
    "vocab_size_per_layer_input": 200,
    "hidden_size_per_layer_input": 16,
    "layer_types": [*_THREE[:2], *_THREE, "full_attention"],
}
_EXPERTS = {"enable_moe_block": True, "num_experts": 4, "top_k_experts": 2, "moe_intermediate_size": 32}


def _spell_rope_old(config: dict[str, Any]) -> None:
    """Gemma 3 came after `type` had become `rope_type`."""
    config["rope_scaling"]["rope_type"] = config["rope_scaling"].pop("type")


SAMPLES = (
    Sample(
        "gemma",
        {
            "head 32": Case({**_HEAD, "num_key_value_heads": 1}),
            "wide, biases, old spelling": Case(
                {"head_dim": 48, "hidden_size": 96, "attention_bias": True, "bos_token_id": 1}, torch.bfloat16, old=True
            ),
        },
        centres={"norm": 0.0},
    ),
    Sample(
        "gemma2",
        {
            "three layers": Case({**_WINDOWS, "num_hidden_layers": 3, "query_pre_attn_scalar": 24}),
            "wide, no caps, old spelling": Case(
                {
                    **_WINDOWS,
                    "hidden_size": 96,
                    "attn_logit_softcapping": None,
                    "final_logit_softcapping": None,
                    "num_key_value_heads": 4,
                },
                torch.bfloat16,
                old=True,
            ),
            "low caps": Case({**_WINDOWS, "attn_logit_softcapping": 1.5, "final_logit_softcapping": 2.0}),
            "head 20": Case({**_WINDOWS, "head_dim": 20}),
        },
        centres={"norm": 0.0},
    ),
    Sample(
        "gemma3_text",
        {
            "layer types, two ropes": Case(
                {**_WINDOWS, "num_hidden_layers": 3, "layer_types": _THREE, "rope_parameters": _ROPES}
            ),
            "wide, old spelling": Case(
                {
                    **_WINDOWS,
                    "hidden_size": 96,
                    "num_hidden_layers": 6,
                    "rope_parameters": {**_ROPES, "sliding_attention": {"rope_type": "default", "rope_theta": 1e4}},
                },
                torch.bfloat16,
                old=True,
            ),
            "capped logits": Case({**_WINDOWS, "final_logit_softcapping": 4.0}),
        },
        wide={"layer_types": _THREE[:2]},
        centres={"norm": 0.0},
        old=_spell_rope_old,
    ),
    Sample(
        "gemma4_text",
        {
            "shared caches, per-layer embeddings": Case(
                {**_GEMMA4, "use_double_wide_mlp": True, "final_logit_softcapping": 3.0}
            ),
            "values are keys, no sharing, two kv heads": Case(
                {
                    **_GEMMA4,
                    "hidden_size": 96,
                    "num_key_value_heads": 4,
                    "num_global_key_value_heads": 2,
                    "attention_k_eq_v": True,
                    "num_kv_shared_layers": 0,
                    "hidden_size_per_layer_input": 0,
                },
                torch.bfloat16,
            ),
            "global_head_dim, default ropes": Case(_GEMMA4, old=True),
            "experts beside the MLP": Case({**_GEMMA4, **_EXPERTS}),
            "all experts, values are keys, no sharing": Case(
                {
                    **_GEMMA4,
                    **_EXPERTS,
                    "top_k_experts": 4,
                    "num_global_key_value_heads": 1,
                    "attention_k_eq_v": True,
                    "num_kv_shared_layers": 0,
                    "hidden_size_per_layer_input": 0,
                },
                torch.bfloat16,
                sharded=True,
            ),
        },
        wide={
            "num_hidden_layers": 4,
            "layer_types": [*_THREE[:2], *_THREE[:2]],
            "num_kv_shared_layers": 2,
            "global_head_dim": 64,
            "hidden_size_per_layer_input": 128,
            "final_logit_softcapping": 30.0,
        },
        centres={"q_norm": 0.2, "norm": 1.0, "scalar": 1.0, "router.scale": 8.0, "per_expert_scale": 1.0},
        old=_spell_old,
    ),
)
