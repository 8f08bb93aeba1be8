"""StableLM 3B, 2 and Zephyr: LayerNorm, a quarter of each head is rotated; the 12B has its parts side by side."""

from __future__ import annotations

from dataclasses import replace

from ...config.rope import RopeDefaults
from ..reading import ConfigReader, Family
from ..spec import LAYER, LayerSpec


def _layer(config: ConfigReader, index: int) -> LayerSpec:
    config.only({"head_dim": config.hidden_size // config.heads})  # of transformers, rope alone would take another
    mixer, parallel = config.attention(bias=config.flag("use_qkv_bias")), config.flag("use_parallel_residual")
    if config.flag("qk_layernorm"):
        q_norm, k_norm = (
            config.norm(f"self_attn.{name}_layernorm", mixer.head_dim, kind=LAYER, each=heads)
            for name, heads in (("q", mixer.heads), ("k", mixer.kv_heads))
        )
        mixer = replace(mixer, q_norm=q_norm, k_norm=k_norm)
    norms = [config.norm(f"{name}_layernorm", kind=LAYER, bias=True) for name in ("input", "post_attention")]
    return LayerSpec(norms[0], mixer, None if parallel else norms[1], config.mlp(), parallel=parallel)


FAMILY = Family(
    "stablelm",
    "StableLmForCausalLM",
    _layer,
    defaults={
        "num_key_value_heads": 32,
        "max_position_embeddings": 4096,
        "layer_norm_eps": 1e-5,
        "use_qkv_bias": None,
        "qk_layernorm": None,
        "use_parallel_residual": None,
        "bos_token_id": 0,
        "eos_token_id": 0,
    },
    fixed={"rotary_scaling_factor": 1.0, "rope_pct": 0.25},
    spelled={"norm_eps": "layer_norm_eps"},
    rope=RopeDefaults(share=0.25),
    epsilon="layer_norm_eps",
    example={"use_qkv_bias": True, "qk_layernorm": True, "use_parallel_residual": True},
)
