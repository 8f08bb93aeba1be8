"""MiniMax-M2 and M2.5: experts chosen by sigmoids and a bias, norms over all heads, `rotary_dim` of a head turns."""

from __future__ import annotations

from dataclasses import replace

from ....runtime.dtypes import SIGMOID
from ....runtime.errors import Unsupported
from ...config.fields import shown
from ...config.rope import RopeConfig, RopeDefaults
from ..experts import W1_W3_W2, count, mixture, router, stacks
from ..mixtures.mixtral import BLOCK, RENAMED
from ..norms.olmo2 import attention
from ..reading import ConfigReader, Family
from ..spec import LayerSpec, Parameter

_THETA = 5_000_000.0


def _rope(config: ConfigReader) -> RopeConfig:
    """`partial_rotary_factor` counts before `rotary_dim`."""
    size = config.head_dim
    return config.rope(RopeDefaults(_THETA, share=config.fields.integer("rotary_dim", 2, size, size) / size))


def _layer(config: ConfigReader, index: int) -> LayerSpec:
    kinds = config.fields.values.get("attn_type_list") or []
    if not isinstance(kinds, list) or any(kind != 1 for kind in kinds):
        asked = f'expected "attn_type_list" as a list of 1 (softmax attention) in {config.fields.what}'
        raise Unsupported(asked, found=shown(kinds))
    experts = count(config, "num_local_experts")
    chooses = replace(
        router(config, SIGMOID, experts, module=f"{BLOCK}.gate", normed=True),
        bias=Parameter(f"{BLOCK}.e_score_correction_bias", (experts,)),
    )
    linears = stacks(config, f"{BLOCK}.experts", experts, config.width, separate=W1_W3_W2)
    return config.layer(attention(config, rope=_rope(config)), mixture(config, chooses, linears))


FAMILY = Family(
    "minimax_m2",
    "MiniMaxM2ForCausalLM",
    _layer,
    defaults={
        "max_position_embeddings": 196608,
        "num_key_value_heads": 8,
        "head_dim": 128,
        "rms_norm_eps": 1e-6,
        "rotary_dim": None,
        "attn_type_list": None,
        "num_experts_per_tok": 8,
        "num_local_experts": 256,
        "bos_token_id": 200034,
        "eos_token_id": 200020,
    },
    rope=RopeDefaults(_THETA, share=1.0),
    fixed={
        "use_qk_norm": True,
        "qk_norm_type": "per_layer",
        "scoring_func": "sigmoid",
        "use_routing_bias": True,
        "shared_intermediate_size": 0,
        "layernorm_full_attention_beta": 1.0,
        "layernorm_linear_attention_beta": 1.0,
        "layernorm_mlp_beta": 1.0,
    },
    mapped={"num_experts": "num_local_experts"},
    renamed=(RENAMED,),
    example={"num_local_experts": 4, "num_experts_per_tok": 2, "rotary_dim": 64},
)
