"""Gemma: the factor of a norm is 1 + weight, embeddings are scaled by sqrt(hidden size), the gate is GELU by tanh."""

from __future__ import annotations

from dataclasses import replace

from ..reading import ConfigReader, Family
from ..spec import DecoderSpec, LayerSpec


def scaled_embedding(config: ConfigReader, spec: DecoderSpec) -> DecoderSpec:
    """The decoder with embeddings times sqrt(hidden size)."""
    return replace(spec, embedding_scale=spec.hidden_size**0.5)


def _layer(config: ConfigReader, index: int) -> LayerSpec:
    bias = config.flag("attention_bias")
    activation = config.activation()
    # "gelu" in the first files meant the tanh form, and transformers 5 reads it as that
    mlp = config.mlp(activation="gelu_pytorch_tanh" if activation == "gelu" else activation)
    norms = [config.norm(f"{name}_layernorm", plus_one=True) for name in ("input", "post_attention")]
    return LayerSpec(norms[0], config.attention(bias=bias, output_bias=bias), norms[1], mlp)


DEFAULTS = {
    "head_dim": 256,
    "max_position_embeddings": 8192,
    "rms_norm_eps": 1e-6,
    "bos_token_id": 2,
    "eos_token_id": 1,
    "tie_word_embeddings": True,
    "attention_bias": None,
    "hidden_activation": None,
}
"""What all Gemmas have in common."""
FAMILY = Family(
    "gemma",
    "GemmaForCausalLM",
    _layer,
    defaults={**DEFAULTS, "hidden_act": "gelu_pytorch_tanh", "num_key_value_heads": 16},
    decoder=scaled_embedding,
)
