"""Small models with LayerNorm whose layers add attention and MLP at once: always, or where a switch says so."""

from __future__ import annotations

from typing import Any

import torch
from support.samples.families import Case, Sample

_WINDOW = {"sliding_window": 8}


def _spell_cohere_old(config: dict[str, Any]) -> None:
    """As Cohere's own files do: with a pattern, and with switches that transformers does not read."""
    config["sliding_window_pattern"] = 2
    config |= {
        "head_dim": 20,
        "layer_switch": 4,
        "order_of_interleaved_layers": "local_attn_first",
        "position_embedding_type": "rope_gptj",
        "rotary_pct": 1.0,
        "use_embedding_sharing": True,
        "use_gated_activation": True,
        "use_parallel_block": True,
        "use_parallel_embedding": True,
    }


SAMPLES = (
    Sample(
        "cohere2",
        {
            "one of four sees all": Case({**_WINDOW, "num_hidden_layers": 4, "logit_scale": 0.25}),
            "head 20, biases, one of two, old spelling": Case(
                {
                    **_WINDOW,
                    "hidden_size": 80,
                    "num_hidden_layers": 3,
                    "layer_types": ["sliding_attention", "full_attention", "sliding_attention"],
                    "attention_bias": True,
                },
                torch.bfloat16,
                old=True,
            ),
            "untied, layer types, llama3, equal heads": Case(
                {
                    **_WINDOW,
                    "num_hidden_layers": 3,
                    "num_key_value_heads": 4,
                    "tie_word_embeddings": False,
                    "layer_types": ["full_attention", "sliding_attention", "sliding_attention"],
                    "rope_parameters": {
                        "rope_type": "llama3",
                        "rope_theta": 5e4,
                        "factor": 8.0,
                        "low_freq_factor": 1.0,
                        "high_freq_factor": 4.0,
                        "original_max_position_embeddings": 16,
                    },
                },
                torch.float16,
                sharded=True,
            ),
        },
        wide={"layer_types": ["sliding_attention", "full_attention"]},
        old=_spell_cohere_old,
    ),
    Sample(
        "stablelm",
        {
            "parallel, norms of heads, biases": Case(
                {
                    "head_dim": 16,
                    "use_parallel_residual": True,
                    "qk_layernorm": True,
                    "use_qkv_bias": True,
                }
            ),
            "a quarter of 24, in a row, old spelling": Case({"hidden_size": 96}, torch.bfloat16, old=True),
            "in a row, norms of heads, half of 16, tied": Case(
                {
                    "qk_layernorm": True,
                    "tie_word_embeddings": True,
                    "num_key_value_heads": 1,
                    "rope_parameters": {
                        "rope_type": "linear",
                        "rope_theta": 1e4,
                        "factor": 2.0,
                        "partial_rotary_factor": 0.5,
                    },
                },
                torch.float16,
                sharded=True,
            ),
            "parallel, biases": Case({"use_parallel_residual": True, "use_qkv_bias": True, "num_key_value_heads": 4}),
        },
    ),
)
