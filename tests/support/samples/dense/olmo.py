"""Small OLMos and EXAONEs: norms after each part, norms of q and k, windows of 8 where the models have thousands."""

from __future__ import annotations

from typing import Any

import torch
from support.samples.families import Case, Sample

_THREE = ["sliding_attention", "full_attention", "sliding_attention"]
_YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 16}
_FULL = {"layer_types": ["full_attention"] * 2, "sliding_window": None}


def _spell_olmo3_old(config: dict[str, Any]) -> None:
    """As OLMo 3's own files: rope_scaling and rope_theta, both of layers that see all only."""
    config.pop("rope_local_base_freq")
    config["rope_scaling"]["rope_type"] = config["rope_scaling"].pop("type")


def _spell_exaone4_old(config: dict[str, Any]) -> None:
    """EXAONE-4.0-32B names the pattern in letters, beside layer_types."""
    config |= {"sliding_window_pattern": "LLLG", "layer_types": _THREE}


SAMPLES = (
    Sample(
        "olmo2",
        {
            "two kv heads": Case({"rms_norm_eps": 1e-3}),
            "wide, biases, tied, old spelling": Case(
                {
                    "hidden_size": 96,
                    "num_key_value_heads": 1,
                    "attention_bias": True,
                    "tie_word_embeddings": True,
                    "rope_parameters": {**_YARN, "rope_theta": 5e4},
                },
                torch.bfloat16,
                old=True,
            ),
            "head 24, as many kv heads": Case({"head_dim": 24, "num_key_value_heads": None}, torch.float16, True),
        },
        wide={"num_key_value_heads": 4},
    ),
    Sample(
        "olmo3",
        {
            "windows, one rope scaled": Case(
                {
                    "num_hidden_layers": 3,
                    "sliding_window": 8,
                    "layer_types": _THREE,
                    "rope_parameters": {
                        "full_attention": {**_YARN, "rope_theta": 1e4},
                        "sliding_attention": {"rope_type": "default", "rope_theta": 2e3},
                    },
                }
            ),
            "wide, four layers, old spelling": Case(
                {
                    "hidden_size": 96,
                    "num_hidden_layers": 4,
                    "num_key_value_heads": 4,
                    "sliding_window": 8,
                    "attention_bias": True,
                    "rope_parameters": {
                        "full_attention": {**_YARN, "rope_theta": 1e4, "attention_factor": 1.2},
                        "sliding_attention": {"rope_type": "default", "rope_theta": 5e5},
                    },
                },
                torch.bfloat16,
                old=True,
            ),
            "no rope settings, tied": Case(
                {"num_hidden_layers": 4, "sliding_window": 8, "num_key_value_heads": 1, "tie_word_embeddings": True},
                torch.float16,
                sharded=True,
            ),
        },
        wide={"layer_types": _THREE[:2]},
        old=_spell_olmo3_old,
    ),
    Sample(
        "exaone4",
        {
            "windows, layers without rope": Case(
                {"num_hidden_layers": 3, "sliding_window": 8, "sliding_window_pattern": 2}
            ),
            "wide, no window, llama3 rope, tied": Case(
                {
                    **_FULL,
                    "hidden_size": 96,
                    "tie_word_embeddings": True,
                    "rope_parameters": {
                        "rope_type": "llama3",
                        "rope_theta": 1e4,
                        "factor": 8.0,
                        "low_freq_factor": 1.0,
                        "high_freq_factor": 4.0,
                        "original_max_position_embeddings": 16,
                    },
                },
                torch.bfloat16,
            ),
            "letters, old spelling": Case(
                {"num_hidden_layers": 3, "num_key_value_heads": 1, "sliding_window": 8, "layer_types": _THREE},
                torch.float16,
                old=True,
            ),
            "a window that no layer has": Case({"layer_types": ["full_attention"] * 2, "head_dim": 24}),
        },
        old=_spell_exaone4_old,
    ),
)
