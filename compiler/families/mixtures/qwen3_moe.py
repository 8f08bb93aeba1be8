"""Qwen 3 MoE: Qwen 3 with softmax-routed experts in most layers; all layers have a window or none."""

from __future__ import annotations

from ....runtime.dtypes import SOFTMAX
from ..experts import mixture, router, stacks
from ..reading import ConfigReader, Family
from ..spec import LayerSpec, Mlp


def sparse(config: ConfigReader, index: int) -> bool:
    """Whether a layer has experts: all of each `decoder_sparse_step` layers' last, but `mlp_only_layers`."""
    dense = config.fields.values.get("mlp_only_layers") or []
    step = config.fields.need_integer("decoder_sparse_step", 0, 2048)
    return index not in dense and step > 0 and (index + 1) % step == 0


def _mlp(config: ConfigReader, index: int) -> Mlp:
    experts = config.fields.need_integer("num_experts", 0, 4096)
    if not experts or not sparse(config, index):
        return config.mlp()
    width = config.fields.need_integer("moe_intermediate_size", 1, 2**20)
    chooses = router(config, SOFTMAX, experts, normed=config.flag("norm_topk_prob"))
    return mixture(config, chooses, stacks(config, "mlp.experts", experts, width))


def _layer(config: ConfigReader, index: int) -> LayerSpec:
    bias = config.flag("attention_bias")
    window = config.integer("sliding_window", 1) if config.flag("use_sliding_window") else None
    mixer = config.attention(bias=bias, output_bias=bias, norms=True, window=window)
    return config.layer(mixer, _mlp(config, index))


FAMILY = Family(
    "qwen3_moe",
    "Qwen3MoeForCausalLM",
    _layer,
    defaults={
        "max_position_embeddings": 32768,
        "num_key_value_heads": 4,
        "rms_norm_eps": 1e-6,
        "attention_bias": None,
        "use_sliding_window": None,
        "sliding_window": 4096,
        "decoder_sparse_step": 1,
        "moe_intermediate_size": 768,
        "num_experts_per_tok": 8,
        "num_experts": 128,
        "norm_topk_prob": False,
        "mlp_only_layers": None,
    },
    mapped={"num_local_experts": "num_experts"},
    example={"num_experts": 4, "num_experts_per_tok": 2, "norm_topk_prob": True, "moe_intermediate_size": 128},
)
