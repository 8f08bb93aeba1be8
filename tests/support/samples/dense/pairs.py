"""Small models whose rope turns neighbouring elements of a head, all of it or its first part."""

from __future__ import annotations

from typing import Any

import torch
from support.samples.families import Case, Sample

_GLM: dict[str, Any] = {"head_dim": 32, "eos_token_id": [], "pad_token_id": None}
"""Without the class's ids, which are beyond the small vocabulary."""
_GLM_CASES = {
    "half of 32, biases": Case(_GLM),
    "wide, half of 40, no biases, old spelling": Case(
        {**_GLM, "hidden_size": 96, "head_dim": 40, "attention_bias": False, "rms_norm_eps": 1e-5},
        torch.bfloat16,
        old=True,
    ),
    "a quarter of 24, tied, linear": Case(
        {
            **_GLM,
            "head_dim": 24,
            "num_key_value_heads": 4,
            "tie_word_embeddings": True,
            "rope_parameters": {
                "rope_type": "linear",
                "rope_theta": 2e3,
                "factor": 4.0,
                "partial_rotary_factor": 0.25,
            },
        },
        torch.float16,
        sharded=True,
    ),
}

SAMPLES = (
    Sample(
        "ernie4_5",
        {
            "head 32": Case({"head_dim": 32}),
            "wide, biases, untied, old spelling": Case(
                {"hidden_size": 96, "head_dim": 48, "use_bias": True, "tie_word_embeddings": False},
                torch.bfloat16,
                old=True,
            ),
            "head 20, yarn beyond 16": Case(
                {
                    "head_dim": 20,
                    "num_key_value_heads": 1,
                    "rope_parameters": {
                        "rope_type": "yarn",
                        "rope_theta": 1e4,
                        "factor": 4.0,
                        "original_max_position_embeddings": 16,
                    },
                },
                torch.float16,
                sharded=True,
            ),
        },
    ),
    Sample("glm", _GLM_CASES),
    Sample("glm4", _GLM_CASES),
)
