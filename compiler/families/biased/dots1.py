"""dots.llm1: Qwen 3's attention, DeepSeek-V3's router and shared experts."""

from __future__ import annotations

from ..experts import deepseek_mixture
from ..reading import ConfigReader, Family
from ..spec import LayerSpec


def _window(config: ConfigReader, index: int) -> int | None:
    """Without `layer_types`, layers from `max_window_layers` on have the window."""
    kinds, first = config.kinds(), config.fields.need_integer("max_window_layers", 0, 4096)
    windowed = kinds[index] == "sliding_attention" if kinds else index >= first
    return config.integer("sliding_window", 1) if windowed else None


def _layer(config: ConfigReader, index: int) -> LayerSpec:
    bias = config.flag("attention_bias")
    mixer = config.attention(bias=bias, output_bias=bias, norms=True, window=_window(config, index))
    return config.layer(mixer, deepseek_mixture(config, index))


FAMILY = Family(
    "dots1",
    "Dots1ForCausalLM",
    _layer,
    defaults={
        "max_position_embeddings": 2048,
        "num_key_value_heads": 32,
        "rms_norm_eps": 1e-6,
        "attention_bias": None,
        "sliding_window": 4096,
        "max_window_layers": 62,
        "first_k_dense_replace": 0,
        "moe_intermediate_size": 1408,
        "num_experts_per_tok": None,
        "n_routed_experts": None,
        "n_shared_experts": None,
        "n_group": 1,
        "topk_group": 1,
        "norm_topk_prob": False,
        "routed_scaling_factor": 1.0,
    },
    fixed={"scoring_func": "noaux_tc", "topk_method": "noaux_tc", "moe_layer_freq": 1},
    mapped={"num_local_experts": "n_routed_experts"},
    example={
        "n_routed_experts": 8,
        "n_shared_experts": 1,
        "num_experts_per_tok": 2,
        "moe_intermediate_size": 128,
        "norm_topk_prob": True,
        "routed_scaling_factor": 2.5,
    },
)
