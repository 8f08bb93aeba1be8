"""DeepSeek-V3 and R1: latent attention, and experts that a router with a bias and groups chooses."""

from __future__ import annotations

from dataclasses import replace

from ....passes.graph.experts import SIGMOID
from ..experts import mixture, router, stacks
from ..latent import KEYS, latent
from ..reading import ConfigReader, Family
from ..spec import LayerSpec, Mlp, Parameter


def shared_mlp(config: ConfigReader, width: int):
    mlp = config.mlp(width=width)
    names = {
        name: replace(getattr(mlp, name), module=f"mlp.shared_experts.{name}_proj") for name in ("gate", "up", "down")
    }
    return replace(mlp, **names)


def _mlp(config: ConfigReader, index: int) -> Mlp:
    fields = config.fields
    if index < fields.need_integer("first_k_dense_replace", 0, 2048):
        return config.mlp()
    experts, width = (
        fields.need_integer("n_routed_experts", 1, 4096),
        fields.need_integer("moe_intermediate_size", 1, 2**20),
    )
    chooses = replace(
        router(config, SIGMOID, experts, normed=config.flag("norm_topk_prob")),
        factor=fields.need_number("routed_scaling_factor", 0.0, 1e6),
        bias=Parameter("mlp.gate.e_score_correction_bias", (experts,)),
        groups=fields.need_integer("n_group", 1, experts),
        kept_groups=fields.need_integer("topk_group", 1, experts),
    )
    shared = shared_mlp(config, width * fields.need_integer("n_shared_experts", 1, 4096))
    return mixture(config, chooses, stacks(config, "mlp.experts", experts, width), shared=shared)


def _layer(config: ConfigReader, index: int) -> LayerSpec:
    bias = config.flag("attention_bias")
    return config.layer(latent(config, interleaved=config.flag("rope_interleave"), bias=bias), _mlp(config, index))


FAMILY = Family(
    "deepseek_v3",
    "DeepseekV3ForCausalLM",
    _layer,
    defaults={
        **KEYS,
        "max_position_embeddings": 4096,
        "rms_norm_eps": 1e-6,
        "moe_intermediate_size": 2048,
        "n_shared_experts": 1,
        "n_routed_experts": 256,
        "routed_scaling_factor": 2.5,
        "n_group": 8,
        "topk_group": 4,
        "num_experts_per_tok": 8,
        "first_k_dense_replace": 3,
        "norm_topk_prob": True,
        "rope_interleave": True,
        "attention_bias": False,
        "bos_token_id": 0,
        "eos_token_id": 1,
        "num_nextn_predict_layers": 1,
    },
    fixed={},
    spelled={"num_local_experts": "n_routed_experts", "num_mtp_layers": "num_nextn_predict_layers"},
    example={"n_group": 2, "topk_group": 1},
)
