"""ERNIE 4.5: rope turns neighbouring elements, and one switch gives all linears of a layer a bias."""

from __future__ import annotations

from ...config.rope import RopeDefaults
from ..reading import ConfigReader, Family
from ..spec import LayerSpec


def _layer(config: ConfigReader, index: int) -> LayerSpec:
    bias = config.flag("use_bias")
    return config.layer(config.attention(bias=bias, output_bias=bias), config.mlp(bias=bias))


FAMILY = Family(
    "ernie4_5",
    "Ernie4_5ForCausalLM",
    _layer,
    defaults={
        "head_dim": 128,
        "num_key_value_heads": 2,
        "max_position_embeddings": 131072,
        "rms_norm_eps": 1e-5,
        "use_bias": None,
        "bos_token_id": 1,
        "eos_token_id": 2,
        "tie_word_embeddings": True,
    },
    fixed={"use_rmsnorm": True, "compression_ratio": 1.0},
    also=("Ernie4_5_ForCausalLM",),  # of the first files, beside remote code
    rope=RopeDefaults(500_000.0, interleaved=True),
)
