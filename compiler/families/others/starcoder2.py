"""StarCoder 2: LayerNorm, biases, an MLP without a gate, and a window in every layer."""

from __future__ import annotations

from ..reading import ConfigReader, Family
from ..spec import LAYER, LayerSpec


def _layer(config: ConfigReader, index: int) -> LayerSpec:
    bias = config.flag("use_bias")
    mixer = config.attention(bias=bias, output_bias=bias, window=config.integer("sliding_window", 1))
    before, inner = (config.norm(f"{name}_layernorm", kind=LAYER, bias=True) for name in ("input", "post_attention"))
    return LayerSpec(before, mixer, inner, config.plain_mlp("mlp.c_fc", "mlp.c_proj", bias=bias))


FAMILY = Family(
    "starcoder2",
    "Starcoder2ForCausalLM",
    _layer,
    defaults={
        "num_key_value_heads": 2,
        "hidden_act": "gelu_pytorch_tanh",
        "max_position_embeddings": 4096,
        "norm_epsilon": 1e-5,
        "sliding_window": None,
        "use_bias": True,
        "bos_token_id": 50256,
        "eos_token_id": 50256,
        "tie_word_embeddings": True,
    },
    fixed={"norm_type": "layer_norm", "mlp_type": "default", "scale_attn_weights": True},
    spelled={"layer_norm_epsilon": "norm_epsilon"},
    epsilon="norm_epsilon",
)
