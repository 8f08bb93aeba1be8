"""Small models with an MLP of two linears, and GELU, squared ReLU or xIELU between them."""

from __future__ import annotations

from typing import Any

import torch
from support.samples.families import Case, Sample

_YARN = {"rope_type": "yarn", "rope_theta": 1e4, "factor": 4.0, "original_max_position_embeddings": 16}
_LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 5e4,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 16,
}


def _spell_starcoder_old(config: dict[str, Any]) -> None:
    """As BigCode's own files do."""
    config |= {
        "attention_softmax_in_fp32": True,
        "layer_norm_epsilon": config["norm_epsilon"],
        "mlp_type": "default",
        "norm_type": "layer_norm",
        "scale_attention_softmax_in_fp32": True,
        "scale_attn_weights": True,
    }


def _spell_apertus_old(config: dict[str, Any]) -> None:
    config |= {"qk_norm": True, "post_norm": False, "mlp_bias": False}


SAMPLES = (
    Sample(
        "starcoder2",
        {
            "window": Case({"sliding_window": 8}),
            "head 20, no biases, untied, no window, old spelling": Case(
                {"hidden_size": 80, "use_bias": False, "tie_word_embeddings": False, "norm_epsilon": 1e-4},
                torch.bfloat16,
                old=True,
            ),
            "gelu, yarn beyond 16": Case(
                {"hidden_act": "gelu", "num_key_value_heads": 4, "rope_parameters": _YARN, "sliding_window": 8},
                torch.float16,
                sharded=True,
            ),
        },
        old=_spell_starcoder_old,
    ),
    Sample(
        "arcee",
        {
            "yarn beyond 16": Case({"rope_parameters": _YARN}),
            "wide, biases, tied, old spelling": Case(
                {
                    "hidden_size": 96,
                    "head_dim": 20,
                    "attention_bias": True,
                    "mlp_bias": True,
                    "tie_word_embeddings": True,
                },
                torch.bfloat16,
                old=True,
            ),
            "silu": Case({"hidden_act": "silu", "num_key_value_heads": 4}, torch.float16, sharded=True),
        },
    ),
    Sample(
        "apertus",
        {
            "xielu, rope of the class": Case(),
            "wide, biases, llama3 beyond 16, old spelling": Case(
                {"hidden_size": 96, "attention_bias": True, "rope_parameters": _LLAMA3}, torch.bfloat16, old=True
            ),
            "relu2, tied": Case(
                {
                    "hidden_act": "relu2",
                    "tie_word_embeddings": True,
                    "num_key_value_heads": 4,
                    "rope_parameters": {"rope_type": "default", "rope_theta": 1e4},
                },
                torch.float16,
                sharded=True,
            ),
        },
        centres={"norm": 1.0, "beta": 0.5},
        old=_spell_apertus_old,
    ),
)
