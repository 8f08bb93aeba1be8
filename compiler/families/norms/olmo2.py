"""OLMo 2: norms after each part instead of before, and norms over all heads of q and of k together."""

from __future__ import annotations

from dataclasses import replace

from ...config.rope import RopeConfig
from ..reading import ConfigReader, Family
from ..spec import Attention, LayerSpec


def after(config: ConfigReader, mixer: Attention) -> LayerSpec:
    """A layer with a norm after its mixer and one after its MLP."""
    mixed, made = (config.norm(f"post_{part}_layernorm") for part in ("attention", "feedforward"))
    return LayerSpec(None, mixer, None, config.mlp(), mixed, made)


def attention(config: ConfigReader, *, window: int | None = None, rope: RopeConfig | None = None) -> Attention:
    """Attention of OLMo 2 and 3."""
    bias = config.flag("attention_bias")
    mixer = config.attention(bias=bias, output_bias=bias, window=window, rope=rope)
    q, k = (
        config.norm(f"self_attn.{name}_norm", heads * mixer.head_dim)
        for name, heads in (("q", mixer.heads), ("k", mixer.kv_heads))
    )
    return replace(mixer, q_norm=q, k_norm=k)


FAMILY = Family(
    "olmo2",
    "Olmo2ForCausalLM",
    lambda config, index: after(config, attention(config)),
    defaults={
        "max_position_embeddings": 2048,
        "rms_norm_eps": 1e-5,
        "attention_bias": None,
        "eos_token_id": 50279,
    },
)
