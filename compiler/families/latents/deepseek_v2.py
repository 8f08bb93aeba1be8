"""DeepSeek-V2: latent attention, and experts chosen by a softmax, in V2 among those of the best groups."""

from __future__ import annotations

from ....runtime.dtypes import SOFTMAX
from ..experts import count, grouped, router, scaled, with_shared
from ..latent import EXPERTS, KEYS, MAPPED, latent
from ..reading import ConfigReader, Family
from ..spec import LayerSpec

_GREEDY, _GROUPED = "greedy", "group_limited_greedy"


def _layer(config: ConfigReader, index: int) -> LayerSpec:
    bias, fields = config.flag("mlp_bias"), config.fields
    if index < fields.need_integer("first_k_dense_replace", 0, 2048):
        return config.layer(latent(config), config.mlp(bias=bias))
    method = fields.text("topk_method", _GREEDY)
    if method not in (_GREEDY, _GROUPED):
        raise fields.refuse("topk_method", f"{_GREEDY} or {_GROUPED}")
    chooses = scaled(config, router(config, SOFTMAX, count(config, "n_routed_experts")))  # norm_topk_prob is not read
    chooses = grouped(config, chooses, best=1) if method == _GROUPED else chooses
    return config.layer(latent(config), with_shared(config, chooses, bias=bias))


FAMILY = Family(
    "deepseek_v2",
    "DeepseekV2ForCausalLM",
    _layer,
    defaults={
        **KEYS,
        **EXPERTS,
        "max_position_embeddings": 2048,
        "rms_norm_eps": 1e-6,
        "moe_intermediate_size": 1407,
        "n_shared_experts": 2,
        "n_routed_experts": 64,
        "routed_scaling_factor": 1.0,
        "n_group": None,
        "topk_group": None,
        "num_experts_per_tok": None,
        "norm_topk_prob": False,
        "topk_method": _GREEDY,
        "first_k_dense_replace": 0,
        "attention_bias": False,
        "mlp_bias": False,
        "bos_token_id": 1,
        "eos_token_id": 2,
    },
    fixed={"scoring_func": "softmax", "moe_layer_freq": 1},
    mapped={"num_experts": "n_routed_experts", **MAPPED},
    example={
        "num_key_value_heads": 4,
        "num_experts_per_tok": 2,
        "moe_intermediate_size": 1408,
        "topk_method": _GROUPED,
        "n_group": 4,
        "topk_group": 2,
    },
)
