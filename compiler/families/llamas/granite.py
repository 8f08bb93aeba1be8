"""Granite 3 and 3.1: Llama with factors on embeddings, scores, what each part adds, and logits."""

from __future__ import annotations

from dataclasses import replace

from ..reading import ConfigReader, Family
from ..spec import DecoderSpec, LayerSpec
from .llama import FAMILY as LLAMA


def _factor(config: ConfigReader, key: str) -> float:
    return config.fields.need_number(key, 0.0, 1e6, open_low=True)


def _layer(config: ConfigReader, index: int) -> LayerSpec:
    layer = LLAMA.layer(config, index)
    mixer = replace(layer.mixer, scale=_factor(config, "attention_multiplier"))
    return replace(layer, mixer=mixer, residual_scale=_factor(config, "residual_multiplier"))


def _decoder(config: ConfigReader, spec: DecoderSpec) -> DecoderSpec:
    scale = _factor(config, "embedding_multiplier")
    return replace(spec, embedding_scale=scale, logits_scale=1 / _factor(config, "logits_scaling"))


_FACTORS = ("attention_multiplier", "residual_multiplier", "embedding_multiplier", "logits_scaling")
FAMILY = Family(
    "granite",
    "GraniteForCausalLM",
    _layer,
    defaults={**LLAMA.defaults, **dict.fromkeys(_FACTORS, 1.0)},
    decoder=_decoder,
    example={**LLAMA.example, **dict.fromkeys(_FACTORS, 2.0)},
)
