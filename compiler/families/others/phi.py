"""Phi 1, 1.5 and 2: attention and MLP side by side after one LayerNorm, biases everywhere, half of each head turns."""

from __future__ import annotations

from dataclasses import replace

from ...config.rope import RopeDefaults
from ..reading import ConfigReader, Family
from ..spec import LAYER, LayerSpec


def _layer(config: ConfigReader, index: int) -> LayerSpec:
    mixer = config.attention(bias=True, output_bias=True, output="self_attn.dense")
    if config.flag("qk_layernorm"):
        q, k = (config.norm(f"self_attn.{one}_layernorm", config.head_dim, kind=LAYER, bias=True) for one in "qk")
        mixer = replace(mixer, q_norm=q, k_norm=k)
    mlp = config.plain_mlp("mlp.fc1", "mlp.fc2", bias=True)
    return LayerSpec(config.norm("input_layernorm", kind=LAYER, bias=True), mixer, None, mlp, parallel=True)


FAMILY = Family(
    "phi",
    "PhiForCausalLM",
    _layer,
    defaults={
        "max_position_embeddings": 2048,
        "hidden_act": "gelu_new",
        "layer_norm_eps": 1e-5,
        "qk_layernorm": None,
        "bos_token_id": 1,
        "eos_token_id": 2,
    },
    decoder=lambda config, spec: replace(spec, head_bias=True),
    rope=RopeDefaults(share=0.5),
    norm="model.final_layernorm",
    epsilon="layer_norm_eps",
    example={"qk_layernorm": True},
)
