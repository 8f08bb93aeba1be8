"""Small models of Llama 4's kind: weighted inputs of experts, chunks, layers without rope whose queries grow."""

from __future__ import annotations

from typing import Any

import torch
from support.samples.families import Case, Sample

_LLAMA4: dict[str, Any] = {
    "num_hidden_layers": 4,
    "num_local_experts": 4,
    "intermediate_size": 32,
    "intermediate_size_mlp": 96,
    "head_dim": 16,
    "attention_chunk_size": 8,
    "floor_scale": 5,
    "attn_scale": 0.5,
    "interleave_moe_layer_step": 2,
    "no_rope_layer_interval": 2,
}

SAMPLES = (
    Sample(
        "llama4_text",
        {
            "chunks, each second layer with experts, each without rope": Case(_LLAMA4),
            "two experts, listed layers, no norms of heads, one chunk, old spelling": Case(
                {
                    **_LLAMA4,
                    "num_experts_per_tok": 2,
                    "moe_layers": [0, 1, 3],
                    "no_rope_layers": [1, 0, 1, 1],
                    "use_qk_norm": False,
                    "attention_chunk_size": 64,
                    "num_key_value_heads": 1,
                    "attention_bias": True,
                    "rope_parameters": {
                        "rope_type": "llama3",
                        "rope_theta": 500000.0,
                        "factor": 8.0,
                        "low_freq_factor": 1.0,
                        "high_freq_factor": 4.0,
                        "original_max_position_embeddings": 16,
                    },
                },
                torch.bfloat16,
                sharded=True,
                old=True,
            ),
            "odd chunks everywhere, one expert, no temperature": Case(
                {
                    **_LLAMA4,
                    "num_hidden_layers": 2,
                    "num_local_experts": 1,
                    "interleave_moe_layer_step": 1,
                    "attention_chunk_size": 13,
                    "layer_types": ["chunked_attention", "chunked_attention"],
                    "attn_temperature_tuning": False,
                    "tie_word_embeddings": True,
                },
                torch.float16,
            ),
        },
        wide={
            "attention_chunk_size": 64,  # one chunk, as no launch plan computes several
            "attn_scale": 0.1,  # with 0.5 two rows of 40 differ by 3.5e-2: scores twice as large, in bfloat16
            "num_hidden_layers": 2,
            "intermediate_size": 128,
            "intermediate_size_mlp": 256,
            "num_experts_per_tok": 4,
            "interleave_moe_layer_step": 1,
        },
    ),
)
