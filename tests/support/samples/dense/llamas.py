"""Small models that are Llama but for one thing: a temperature, layers without rope, biases, factors, late norms."""

from __future__ import annotations

from typing import Any

import torch
from support.samples.families import Case, Sample

_ORIGINAL = 16
_YARN = {"rope_type": "yarn", "rope_theta": 1e4, "factor": 4.0, "original_max_position_embeddings": _ORIGINAL}
_ALPHA = {"rope_type": "dynamic", "rope_theta": 1e4, "factor": 1.0, "alpha": 1000.0}
_DYNAMIC = {"rope_type": "dynamic", "rope_theta": 1e4, "factor": 4.0}
_MINISTRAL3 = {"head_dim": 24, "pad_token_id": None}
_GRANITE_SWA = {"num_hidden_layers": 3, "sliding_window": 8}
_SMOLLM3 = {"pad_token_id": None, "num_hidden_layers": 4}


def _spell_alpha_old(config: dict[str, Any]) -> None:
    """Hunyuan's own files have the settings of other scalings beside alpha, and many keys without effect."""
    rope = config["rope_scaling"]
    rope["type"] = rope.pop("rope_type")
    rope |= {"beta_fast": 32, "beta_slow": 1, "mscale": 1.0, "mscale_all_dim": 1.0}
    config |= {"attention_head_dim": 24, "use_qk_norm": True, "use_cla": False, "cla_share_factor": 2}
    config |= {"add_classification_head": False, "class_num": 0, "pool_type": "last"}


SAMPLES = (
    Sample(
        "ministral3",
        {
            "yarn, temperature": Case(
                {
                    **_MINISTRAL3,
                    "rope_parameters": {**_YARN, "mscale": 1.0, "mscale_all_dim": 1.0, "llama_4_scaling_beta": 0.5},
                }
            ),
            "wide, window, tied, old spelling": Case(
                {
                    **_MINISTRAL3,
                    "hidden_size": 96,
                    "sliding_window": 8,
                    "tie_word_embeddings": True,
                    "num_key_value_heads": 4,
                    "rope_parameters": {**_YARN, "llama_4_scaling_beta": 0.2},
                },
                torch.bfloat16,
                old=True,
            ),
            "no scaled rope": Case(
                {
                    **_MINISTRAL3,
                    "num_key_value_heads": 1,
                    "rope_parameters": {
                        "rope_type": "default",
                        "rope_theta": 2e3,
                        "llama_4_scaling_beta": 1.0,
                        "original_max_position_embeddings": 10,
                    },
                },
                torch.float16,
                sharded=True,
            ),
            "no rope settings": Case({**_MINISTRAL3, "rope_parameters": None}),
        },
        # with two layers, rounding in int8 alone moves the logits by a tenth
        wide={"num_hidden_layers": 1},
    ),
    Sample(
        "smollm3",
        {
            "each fourth layer without rope": Case({**_SMOLLM3, "rope_parameters": None}),
            "wide, listed layers, windows of theirs, old spelling": Case(
                {
                    **_SMOLLM3,
                    "hidden_size": 96,
                    "num_hidden_layers": 3,
                    "no_rope_layers": [0, 1, 0],
                    "use_sliding_window": True,
                    "sliding_window": 8,
                    "tie_word_embeddings": False,
                    "attention_bias": True,
                    "rope_parameters": {"rope_type": "linear", "rope_theta": 5e4, "factor": 2.0},
                },
                torch.bfloat16,
                old=True,
            ),
            "every second layer, layer types, biases": Case(
                {
                    **_SMOLLM3,
                    "num_hidden_layers": 3,
                    "no_rope_layer_interval": 2,
                    "use_sliding_window": True,
                    "sliding_window": 8,
                    "layer_types": ["sliding_attention", "full_attention", "full_attention"],
                    "mlp_bias": True,
                    "num_key_value_heads": 1,
                },
                torch.float16,
                sharded=True,
            ),
        },
        wide={"no_rope_layers": [1, 0]},
    ),
    Sample(
        "hunyuan_v1_dense",
        {
            "alpha": Case({"head_dim": 24, "rope_parameters": _ALPHA}),
            "wide, tied, biases, old spelling": Case(
                {
                    "head_dim": 24,
                    "hidden_size": 96,
                    "num_key_value_heads": 1,
                    "attention_bias": True,
                    "tie_word_embeddings": True,
                    "rope_parameters": {**_ALPHA, "alpha": 50.0},
                },
                torch.bfloat16,
                old=True,
            ),
            "as many kv heads, default rope": Case(
                {"head_dim": 16, "num_key_value_heads": None}, torch.float16, sharded=True
            ),
            "dynamic without alpha": Case(
                {"head_dim": 16, "max_position_embeddings": 24, "rope_parameters": _DYNAMIC}, by_length=True
            ),
        },
        old=_spell_alpha_old,
    ),
    Sample(
        "seed_oss",
        {
            "biases of q, k and v": Case({"head_dim": 24}),
            "wide, no biases, tied, old spelling": Case(
                {"hidden_size": 96, "head_dim": None, "attention_bias": False, "tie_word_embeddings": True},
                torch.bfloat16,
                old=True,
            ),
            "all biases": Case(
                {
                    "head_dim": 16,
                    "num_key_value_heads": 1,
                    "attention_out_bias": True,
                    "mlp_bias": True,
                    "rope_parameters": {"rope_type": "linear", "rope_theta": 1e4, "factor": 4.0},
                },
                torch.float16,
                sharded=True,
            ),
        },
    ),
    Sample(
        "granite",
        {
            "four factors": Case(
                {
                    "attention_multiplier": 0.125,
                    "residual_multiplier": 0.22,
                    "embedding_multiplier": 12.0,
                    "logits_scaling": 8.0,
                }
            ),
            "wide, biases, tied, old spelling": Case(
                {
                    "hidden_size": 96,
                    "attention_bias": True,
                    "mlp_bias": True,
                    "tie_word_embeddings": True,
                    "attention_multiplier": 0.3,
                    "residual_multiplier": 1.5,
                },
                torch.bfloat16,
                old=True,
            ),
            "no factors, yarn": Case({"num_key_value_heads": 1, "rope_parameters": _YARN}, torch.float16, sharded=True),
        },
    ),
    Sample(
        "granite_swa",
        {
            "sinks, windows, a theta for each layer": Case(
                {
                    **_GRANITE_SWA,
                    "layer_rope_theta": [0, 1e4, 3e2],
                    "attention_multiplier": 0.3,
                    "residual_multiplier": 0.5,
                    "embedding_multiplier": 2.0,
                    "logits_scaling": 8.0,
                }
            ),
            "wide, one theta, biases, old spelling": Case(
                {
                    **_GRANITE_SWA,
                    "hidden_size": 96,
                    "attention_bias": True,
                    "mlp_bias": True,
                    "tie_word_embeddings": False,
                    "rope_parameters": {"rope_type": "linear", "rope_theta": 5e4, "factor": 2.0},
                },
                torch.bfloat16,
                old=True,
            ),
            "each fourth layer sees all, yarn": Case(
                {**_GRANITE_SWA, "num_hidden_layers": 5, "num_key_value_heads": 1, "rope_parameters": _YARN},
                torch.float16,
                sharded=True,
            ),
            "listed kinds, thetas of a scaled rope": Case(
                {
                    **_GRANITE_SWA,
                    "layer_types": ["sliding_attention", "full_attention", "sliding_attention"],
                    "layer_rope_theta": [5e4, 0, 2e3],
                    "rope_parameters": _YARN,
                }
            ),
        },
        wide={"layer_rope_theta": [0, 1e4]},
        centres={"norm": 1.0, "sinks": 2.0},  # as large as a window of scores: without sinks, all is twice as large
        old=lambda config: config.pop("layer_rope_theta"),
    ),
)
