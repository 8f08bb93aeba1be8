"""Command R7B and Command A: attention and MLP side by side, and rope only in the layers that have a window."""

from __future__ import annotations

from dataclasses import replace

from ...config.rope import RopeDefaults
from ..reading import ConfigReader, Family
from ..spec import LAYER, DecoderSpec, LayerSpec

_FIXED = {
    "use_parallel_block": True,
    "use_gated_activation": True,
    "use_qk_norm": False,
    "position_embedding_type": "rope_gptj",
    "rotary_pct": 1.0,
    "order_of_interleaved_layers": "local_attn_first",
    "layer_switch": 4,
}
"""Of published files, and not read by transformers."""


def _layer(config: ConfigReader, index: int) -> LayerSpec:
    fields, bias = config.fields, config.flag("attention_bias")
    windowed = config.kind(index, fields.need_integer("sliding_window_pattern", 1, 4096)) == "sliding_attention"
    window = fields.need_integer("sliding_window", 1, 2**31 - 1) if windowed else None
    mixer = config.attention(bias=bias, output_bias=bias, window=window)
    mixer = mixer if windowed else replace(mixer, rope=None)
    return LayerSpec(config.norm("input_layernorm", kind=LAYER), mixer, None, config.mlp(), parallel=True)


def _decoder(config: ConfigReader, spec: DecoderSpec) -> DecoderSpec:
    return replace(spec, logits_scale=config.fields.need_number("logit_scale", 0.0, 1e6, open_low=True))


FAMILY = Family(
    "cohere2",
    "Cohere2ForCausalLM",
    _layer,
    defaults={
        "max_position_embeddings": 8192,
        "layer_norm_eps": 1e-5,
        "logit_scale": 0.0625,
        "attention_bias": None,
        "sliding_window": 4096,
        "sliding_window_pattern": 4,
        "bos_token_id": 5,
        "eos_token_id": 255001,
        "tie_word_embeddings": True,
    },
    fixed=_FIXED,
    decoder=_decoder,
    rope=RopeDefaults(interleaved=True),
    epsilon="layer_norm_eps",
)
