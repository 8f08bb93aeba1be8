"""Gemma 2: norms before and after each part, windows in every other layer, caps on scores and logits."""

from __future__ import annotations

from dataclasses import replace

from ...config.rope import RopeDefaults
from ..reading import ConfigReader, Family
from ..spec import DecoderSpec, LayerSpec
from .gemma import DEFAULTS, scaled_embedding


def sandwich(config: ConfigReader, index: int, every: int, rope: RopeDefaults | None = None) -> LayerSpec:
    """A layer of Gemma 2 or 3; `every` so many layers one sees all tokens."""
    windowed, bias = config.kind(index, every) == "sliding_attention", config.flag("attention_bias")
    window = config.fields.need_integer("sliding_window", 1, 2**31 - 1) if windowed else None
    mixer = config.attention(bias=bias, output_bias=bias, window=window, rope=config.rope(rope))
    mixer = replace(
        mixer,
        scale=config.fields.need_number("query_pre_attn_scalar", 0.0, 1e6, open_low=True) ** -0.5,
        softcap=config.cap("attn_logit_softcapping"),
    )
    names = ("input", "pre_feedforward", "post_attention", "post_feedforward")
    before, inner, after, last = (config.norm(f"{name}_layernorm", plus_one=True) for name in names)
    mlp = config.mlp(activation=config.activation("hidden_activation"))
    return LayerSpec(before, mixer, inner, mlp, after, last)


def capped(config: ConfigReader, spec: DecoderSpec) -> DecoderSpec:
    """The decoder with scaled embeddings and a cap on its logits."""
    return replace(scaled_embedding(config, spec), logits_softcap=config.cap("final_logit_softcapping"))


FAMILY = Family(
    "gemma2",
    "Gemma2ForCausalLM",
    lambda config, index: sandwich(config, index, 2),
    defaults={
        **DEFAULTS,
        "num_key_value_heads": 4,
        "hidden_activation": "gelu_pytorch_tanh",
        "query_pre_attn_scalar": 256,
        "sliding_window": 4096,
        "attn_logit_softcapping": 50.0,
        "final_logit_softcapping": 30.0,
        "cache_implementation": None,
    },
    spelled={"sliding_window_size": "sliding_window"},
    decoder=capped,
    example={"query_pre_attn_scalar": 144},
)
