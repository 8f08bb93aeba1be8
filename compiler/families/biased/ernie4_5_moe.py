"""ERNIE 4.5 with experts: a bias chooses them, their softmax weighs them; the first layers may have none."""

from __future__ import annotations

from dataclasses import replace

from ....runtime.dtypes import SOFTMAX
from ..experts import count, inner, mixture, router, shared, stacks
from ..llamas.ernie4_5 import FAMILY as ERNIE
from ..reading import ConfigReader, Family
from ..spec import LayerSpec, Mlp, Parameter


def _sparse(config: ConfigReader, index: int) -> bool:
    fields = config.fields
    first, last = (
        fields.need_integer("moe_layer_start_index", 0, 4096),
        fields.need_integer("moe_layer_end_index", -1, 4096),
    )
    interval = fields.need_integer("moe_layer_interval", 1, 4096)
    return first <= index and (last == -1 or index <= last) and (index + 1) % interval == 0


def _mlp(config: ConfigReader, index: int) -> Mlp:
    bias = config.flag("use_bias")
    if not _sparse(config, index):
        return config.mlp(bias=bias)
    experts, width = count(config, "moe_num_experts"), inner(config)
    beside = config.fields.need_integer("moe_num_shared_experts", 0, 1024)
    chooses = replace(
        router(config, SOFTMAX, experts, "moe_k", normed=True),
        least=config.fields.need_number("moe_norm_min", 0.0, 1.0),
        bias=Parameter("mlp.moe_statics.e_score_correction_bias", (1, experts)),
    )
    return mixture(
        config,
        chooses,
        stacks(config, "mlp.experts", experts, width),
        shared=shared(config, "mlp.shared_experts", beside * width, bias=bias) if beside else None,
    )


def _layer(config: ConfigReader, index: int) -> LayerSpec:
    bias = config.flag("use_bias")
    return config.layer(config.attention(bias=bias, output_bias=bias), _mlp(config, index))


FAMILY = Family(
    "ernie4_5_moe",
    "Ernie4_5_MoeForCausalLM",
    _layer,
    defaults={
        **{key: value for key, value in ERNIE.defaults.items() if key != "head_dim"},
        "num_key_value_heads": 4,
        "moe_intermediate_size": 1536,
        "moe_k": 6,
        "moe_num_experts": 64,
        "moe_num_shared_experts": 2,
        "moe_layer_start_index": 1,
        "moe_layer_end_index": -1,
        "moe_layer_interval": 1,
        "moe_norm_min": 1e-12,
    },
    decoder=lambda config, spec: replace(spec, head_bias=config.flag("use_bias")),
    rope=ERNIE.rope,
    fixed={**ERNIE.fixed, "moe_gate": "topk", "moe_gate_act": "softmax", "moe_use_aux_free": True},
    mapped={"num_experts": "moe_num_experts", "num_experts_per_tok": "moe_k"},
    renamed=((".moe_statics.", ".gate.moe_statics."),),
    example={"moe_num_experts": 4, "moe_k": 2, "moe_intermediate_size": 128, "use_bias": True},
)
