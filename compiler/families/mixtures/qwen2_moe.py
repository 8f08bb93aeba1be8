"""Qwen 1.5 MoE and Qwen 2 MoE: softmax-routed experts beside a shared one, which a gate of its own weighs."""

from __future__ import annotations

from ....runtime.dtypes import SOFTMAX
from ..experts import inner, mixture, router, shared, stacks
from ..llamas.qwen2 import FAMILY as QWEN2
from ..reading import ConfigReader, Family
from ..spec import LayerSpec, Linear, Mlp
from .qwen3_moe import sparse


def _window(config: ConfigReader, index: int) -> int | None:
    """Without `layer_types`, every second layer below `max_window_layers` has a window, if windows are on."""
    if not config.flag("use_sliding_window"):
        return None
    kinds, below = config.kinds(), config.fields.need_integer("max_window_layers", 0, 4096)
    windowed = kinds[index] == "sliding_attention" if kinds else index % 2 == 0 and index < below
    return config.integer("sliding_window", 1) if windowed else None


def _mlp(config: ConfigReader, index: int) -> Mlp:
    experts = config.fields.need_integer("num_experts", 0, 4096)
    if not experts or not sparse(config, index):
        return config.mlp()
    return mixture(
        config,
        router(config, SOFTMAX, experts, normed=config.flag("norm_topk_prob")),
        stacks(config, "mlp.experts", experts, inner(config)),
        shared=shared(config, "mlp.shared_expert", inner(config, "shared_expert_intermediate_size")),
        shared_gate=Linear("mlp.shared_expert_gate", 1, config.hidden_size, kept=True),
    )


def _layer(config: ConfigReader, index: int) -> LayerSpec:
    mixer = config.attention(bias=config.flag("qkv_bias"), window=_window(config, index))
    return config.layer(mixer, _mlp(config, index))


FAMILY = Family(
    "qwen2_moe",
    "Qwen2MoeForCausalLM",
    _layer,
    defaults={
        **QWEN2.defaults,
        "num_key_value_heads": 16,
        "qkv_bias": True,
        "decoder_sparse_step": 1,
        "moe_intermediate_size": 1408,
        "shared_expert_intermediate_size": 5632,
        "num_experts_per_tok": 4,
        "num_experts": 60,
        "norm_topk_prob": False,
        "mlp_only_layers": None,
    },
    example={
        "num_experts": 4,
        "num_experts_per_tok": 2,
        "norm_topk_prob": True,
        "moe_intermediate_size": 128,
        "shared_expert_intermediate_size": 128,
        "use_sliding_window": True,
    },
)
