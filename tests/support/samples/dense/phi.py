"""Small Phis: LayerNorms with biases and heads of which a part turns; fused tensors and ropes with two tables."""

from __future__ import annotations

from typing import Any

import torch
from support.samples.families import Case, Sample

_PLAIN = {"pad_token_id": None}
_ORIGINAL = 18
"""Of prompts of 3, 17 and 36 tokens, one stays within it, one crosses it, one begins beyond it."""


def _long(turned: int, share: float = 1.0) -> dict[str, Any]:
    """The settings of a LongRoPE that turns so many elements of a head."""
    factors = {
        "short_factor": [1.0 + 0.1 * one for one in range(turned // 2)],
        "long_factor": [3.0 + 0.5 * one for one in range(turned // 2)],
    }
    return {"rope_type": "longrope", "rope_theta": 1e4, "partial_rotary_factor": share, **factors}


def _spell_phi_old(config: dict[str, Any]) -> None:
    config["partial_rotary_factor"] = 0.4


def _spell_phi3_old(config: dict[str, Any]) -> None:
    """As Phi 4 mini has it: the original length stands at the top. Transformers 5.23 fails with Phi 3's "su"."""
    config |= {"full_attn_mod": 1, "interpolate_factor": 1, "lm_head_bias": False}
    rope = config["rope_scaling"]
    config["rope_scaling"] = {"type": "longrope", **{key: rope[key] for key in ("short_factor", "long_factor")}}


SAMPLES = (
    Sample(
        "phi",
        {
            "half heads": Case({"layer_norm_eps": 1e-2}),
            "wide, norms of heads, tied, old spelling": Case(
                {
                    "hidden_size": 80,
                    "num_key_value_heads": 4,
                    "qk_layernorm": True,
                    "tie_word_embeddings": True,
                    "partial_rotary_factor": 0.4,
                },
                torch.bfloat16,
                old=True,
            ),
            "another activation, scaled positions": Case(
                {
                    "hidden_act": "relu",
                    "num_key_value_heads": 1,
                    "qk_layernorm": True,
                    "rope_parameters": {
                        "rope_type": "linear",
                        "factor": 4.0,
                        "rope_theta": 2e3,
                        "partial_rotary_factor": 0.25,
                    },
                },
                torch.float16,
                sharded=True,
            ),
        },
        centres={"norm.bias": 0.0, "norm": 1.0},
        old=_spell_phi_old,
    ),
    Sample(
        "phi3",
        {
            "two tables": Case(
                {**_PLAIN, "original_max_position_embeddings": _ORIGINAL, "rope_parameters": _long(12, 0.75)}
            ),
            "wide, one window, one kv head": Case(
                {**_PLAIN, "hidden_size": 96, "num_key_value_heads": 1, "sliding_window": 8, "hidden_act": "gelu"},
                torch.bfloat16,
                sharded=True,
            ),
            "two tables, tied, old spelling": Case(
                {
                    **_PLAIN,
                    "num_key_value_heads": 4,
                    "tie_word_embeddings": True,
                    "original_max_position_embeddings": _ORIGINAL,
                    "rope_parameters": _long(16),
                },
                torch.float16,
                old=True,
            ),
            "a factor of attention, window": Case(
                {
                    **_PLAIN,
                    "sliding_window": 8,
                    "original_max_position_embeddings": 16,
                    "rope_parameters": {**_long(16), "attention_factor": 1.3, "factor": 4.0},
                }
            ),
        },
        wide={"original_max_position_embeddings": 64, "rope_parameters": _long(24, 0.75)},
        old=_spell_phi3_old,
    ),
)
