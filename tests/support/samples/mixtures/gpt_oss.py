"""Small models of GPT-OSS's kind: experts with biases and limits, sinks, windows."""

from __future__ import annotations

from typing import Any

import torch
from support.samples.families import Case, Sample

EXPERTS: dict[str, Any] = {
    "num_local_experts": 8,
    "num_experts_per_tok": 2,
    "intermediate_size": 32,
    "head_dim": 16,
    "sliding_window": 8,
    "swiglu_limit": 0.5,
}
"""Small numbers pass a limit of 7 unchanged."""


def _spell_old(config: dict[str, Any]) -> None:
    """As the published files do, which have second names of some keys."""
    config |= {"experts_per_token": config["num_experts_per_tok"], "initial_context_length": 4096}


SAMPLES = (
    Sample(
        "gpt_oss",
        {
            "sinks, windows, limits": Case(EXPERTS),
            "beyond the original length, old spelling": Case(
                {
                    **EXPERTS,
                    "num_hidden_layers": 3,
                    "num_key_value_heads": 1,
                    "swiglu_alpha": 0.7,
                    "rope_parameters": {
                        "rope_type": "yarn",
                        "rope_theta": 150000.0,
                        "factor": 4.0,
                        "beta_fast": 32.0,
                        "beta_slow": 1.0,
                        "truncate": False,
                        "original_max_position_embeddings": 16,
                    },
                },
                torch.bfloat16,
                sharded=True,
                old=True,
            ),
            "all experts, no biases of attention, head tied": Case(
                {
                    **EXPERTS,
                    "num_local_experts": 3,
                    "num_experts_per_tok": 3,
                    "attention_bias": False,
                    "tie_word_embeddings": True,
                    "layer_types": ["full_attention", "sliding_attention"],
                },
                torch.float16,
            ),
        },
        wide={"intermediate_size": 128, "num_local_experts": 4, "num_experts_per_tok": 4},
        old=_spell_old,
    ),
)
