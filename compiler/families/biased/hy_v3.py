"""Hunyuan 3: norms of heads, experts chosen by sigmoids and a bias beside a shared one, a first layer without any."""

from __future__ import annotations

from dataclasses import replace

from ....runtime.dtypes import SIGMOID
from ...config.rope import RopeDefaults
from ..experts import count, inner, mixture, router, shared, stacks
from ..reading import ConfigReader, Family
from ..spec import LayerSpec, Mlp, Parameter


def _sparse(config: ConfigReader, index: int) -> bool:
    """Whether a layer has experts: `mlp_layer_types`, by default all but the first."""
    kinds = config.fields.values.get("mlp_layer_types")
    if kinds is None:
        return index > 0
    if not isinstance(kinds, list) or len(kinds) != config.layers or not {*kinds} <= {"dense", "sparse"}:
        expected = f"a list of dense or sparse for each of num_hidden_layers ({config.layers})"
        raise config.fields.refuse("mlp_layer_types", expected)
    return kinds[index] == "sparse"


def _mlp(config: ConfigReader, index: int) -> Mlp:
    bias = config.flag("mlp_bias")
    if not _sparse(config, index):
        return config.mlp(bias=bias)
    experts, width = count(config, "num_experts"), inner(config)
    chooses = replace(
        router(config, SIGMOID, experts, module="mlp.router.gate", normed=True),
        factor=config.fields.need_number("router_scaling_factor", 0.0, 1e6, open_low=True),
        bias=Parameter("mlp.expert_bias", (experts,)),
    )
    beside = config.fields.need_integer("num_shared_experts", 1, 1024)
    return mixture(
        config,
        chooses,
        stacks(config, "mlp.experts", experts, width),
        shared=shared(config, "mlp.shared_mlp", beside * width, bias=bias),
    )


def _layer(config: ConfigReader, index: int) -> LayerSpec:
    bias = config.flag("attention_bias")
    return config.layer(config.attention(bias=bias, output_bias=bias, norms=True), _mlp(config, index))


FAMILY = Family(
    "hy_v3",
    "HYV3ForCausalLM",
    _layer,
    defaults={
        "max_position_embeddings": 131072,
        "num_key_value_heads": 8,
        "head_dim": 128,
        "rms_norm_eps": 1e-5,
        "attention_bias": None,
        "mlp_bias": None,
        "mlp_layer_types": None,
        "moe_intermediate_size": 1536,
        "num_experts": 192,
        "num_experts_per_tok": 8,
        "num_shared_experts": 1,
        "router_scaling_factor": 2.826,
    },
    rope=RopeDefaults(11_158_840.0),
    fixed={
        "qk_norm": True,
        "route_norm": True,
        "moe_router_use_sigmoid": True,
        "moe_router_enable_expert_bias": True,
        "first_k_dense_replace": 1,
    },
    mapped={"num_local_experts": "num_experts"},
    spelled={"expert_hidden_dim": "moe_intermediate_size"},
    renamed=(
        (".router.gate.", ".gate."),
        (".expert_bias", ".e_score_correction_bias"),
        (".shared_mlp.", ".shared_experts."),
    ),
    example={
        "num_experts": 4,
        "num_experts_per_tok": 2,
        "moe_intermediate_size": 128,
        "attention_bias": True,
        "mlp_bias": True,
    },
)
