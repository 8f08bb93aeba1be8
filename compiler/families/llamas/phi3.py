"""Phi 3, 3.5, 4 and 4 mini: q, k and v lie in one tensor, gate and up in another; one window for all layers."""

from __future__ import annotations

from ....runtime.errors import Unsupported
from ...config.rope import RopeDefaults
from ..reading import ConfigReader, Family
from ..spec import LayerSpec


def _layer(config: ConfigReader, index: int) -> LayerSpec:
    rope = config.rope()
    if rope.type not in ("default", "longrope"):  # transformers 5 reads "yarn" as longrope, and refuses all others
        raise Unsupported(
            f"expected a rope type of default, longrope in {config.fields.what}", found=f"{rope.type!r} in a Phi 3"
        )
    mixer = config.attention(rope=rope, window=config.integer("sliding_window", 1), fused="self_attn.qkv_proj")
    return config.layer(mixer, config.mlp(fused="mlp.gate_up_proj"))


FAMILY = Family(
    "phi3",
    "Phi3ForCausalLM",
    _layer,
    defaults={
        "max_position_embeddings": 4096,
        "original_max_position_embeddings": 4096,
        "rms_norm_eps": 1e-5,
        "sliding_window": None,
        "bos_token_id": 1,
        "eos_token_id": 32000,
    },
    rope=RopeDefaults(share=1.0),
    example={"sliding_window": 64, "partial_rotary_factor": 0.75},
)
