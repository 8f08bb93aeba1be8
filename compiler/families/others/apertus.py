"""Apertus: norms of heads, and an MLP without a gate whose activation, xIELU, has numbers of its own in each layer."""

from __future__ import annotations

from ...config.rope import RopeDefaults
from ..reading import ConfigReader, Family
from ..spec import LayerSpec

_SCALES = {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
_ROPE = RopeDefaults(12e6)
_ALONE = RopeDefaults(12e6, old={"rope_scaling": {**_SCALES, "original_max_position_embeddings": 8192}})
"""Of a config that names no scaling."""


def _layer(config: ConfigReader, index: int) -> LayerSpec:
    fields, bias = config.fields, config.flag("attention_bias")
    scaled = fields.has("rope_parameters") or fields.table("rope_scaling") is not None
    if not scaled:  # transformers takes its own rope_parameters then, with their theta
        config.only({"rope_theta": _ROPE.theta})
    mixer = config.attention(bias=bias, output_bias=bias, norms=True, rope=config.rope(_ROPE if scaled else _ALONE))
    norms = [config.norm(f"{name}_layernorm") for name in ("attention", "feedforward")]
    return LayerSpec(norms[0], mixer, norms[1], config.plain_mlp("mlp.up_proj", "mlp.down_proj", bias=False))


FAMILY = Family(
    "apertus",
    "ApertusForCausalLM",
    _layer,
    defaults={
        "hidden_act": "xielu",
        "max_position_embeddings": 65536,
        "rms_norm_eps": 1e-5,
        "attention_bias": None,
        "bos_token_id": 1,
        "eos_token_id": 2,
    },
    fixed={"qk_norm": True, "post_norm": False, "mlp_bias": False},
    rope=_ROPE,
)
