"""Values of config.json that families with experts refuse, and keys of their published files that change nothing."""

from __future__ import annotations

import re
from typing import Any

import pytest
from support.samples.families import read

from llmc.compiler.families.spec import DecoderSpec, Experts
from llmc.runtime.errors import CheckpointError, Unsupported

NAMES = {
    "glm4_moe": "Glm4Moe",
    "hy_v3": "HYV3",
    "minimax_m2": "MiniMaxM2",
    "ernie4_5_moe": "Ernie4_5_Moe",
    "qwen2_moe": "Qwen2Moe",
    "granitemoe": "GraniteMoe",
}
ROUTED = {"n_routed_experts": 8, "n_shared_experts": 1, "num_experts_per_tok": 2, "moe_intermediate_size": 32}
GROUPS = {**ROUTED, "n_group": 4, "topk_group": 1}
FACTORS = {"short_factor": [1.0] * 8, "long_factor": [2.0] * 8}
LONG = {"type": "longrope", **FACTORS, "short_mscale": 1.2, "long_mscale": 1.2, "original_max_position_embeddings": 16}
HY = {"head_dim": 16, "moe_intermediate_size": 32}


def of(kind: str, **changes: Any) -> DecoderSpec:
    return read(f"{NAMES.get(kind, kind.capitalize())}ForCausalLM", **changes)


@pytest.mark.parametrize(
    ("kind", "changes", "said"),
    [
        (
            "mixtral",
            {"num_experts_per_tok": 9},
            '"num_experts_per_tok" as an integer from 1 to 8 in config.json\n  found: 9',
        ),
        (
            "mixtral",
            {"num_local_experts": 0},
            '"num_local_experts" as an integer from 1 to 4096 in config.json\n  found: 0',
        ),
        (
            "mixtral",
            {"num_local_experts": 8, "num_experts": 4},
            '"num_experts" as 8 in config.json\n  found: 4',
        ),
        (
            "mixtral",
            {"hidden_act": "relu2"},
            '"hidden_act" as one that an MLP with a gate has (silu, gelu, gelu_pytorch_tanh, relu) in config.json',
        ),
        ("mixtral", {"shared_expert_intermediate_size": 8}, '"shared_expert_intermediate_size": 8'),
        ("qwen2_moe", {"shared_expert_intermediate_size": 0}, '"shared_expert_intermediate_size" as an integer from 1'),
        ("qwen2_moe", {"decoder_sparse_step": -1}, '"decoder_sparse_step" as an integer from 0 to 2048'),
        ("olmoe", {"clip_qkv": 8.0}, 'expected "clip_qkv" as null in config.json\n  found: 8.0'),
        (
            "phimoe",
            {"num_experts_per_tok": 3},
            'expected "num_experts_per_tok" as 2 in config.json\n  found: 3',
        ),
        ("phimoe", {"num_local_experts": 1}, '"num_local_experts" as an integer from 2 to 4096'),
        (
            "phimoe",
            {"rope_scaling": {"type": "linear", "factor": 2.0}},
            "expected a rope type of default, longrope in config.json\n  found: 'linear' in a Phi 3.5 MoE",
        ),
        (
            "phimoe",
            {"rope_scaling": {**LONG, "long_mscale": 1.3}},
            '"long_mscale" as "short_mscale" (1.2) in the rope settings of config.json\n  found: 1.3',
        ),
        (
            "phimoe",
            {"rope_scaling": {**LONG, "short_mscale": None}},
            '"short_mscale" as a number over 0 and up to 1e+06 in the rope settings of config.json',
        ),
        ("granitemoe", {"residual_multiplier": 0.0}, '"residual_multiplier" as a number over 0'),
        ("granitemoe", {"mlp_bias": True}, '"mlp_bias": true'),
        (
            "glm4_moe",
            {**GROUPS, "num_experts_per_tok": 3},
            '"num_experts_per_tok" as at most 2, those of the kept groups, in config.json\n  found: 3',
        ),
        (
            "glm4_moe",
            {**ROUTED, "n_group": 3},
            '"n_group" as a number that divides 8 experts into groups of two or more in config.json\n  found: 3',
        ),
        ("glm4_moe", {**ROUTED, "n_group": 8}, "into groups of two or more"),
        ("glm4_moe", {**GROUPS, "topk_group": 5}, '"topk_group" as an integer from 1 to 4'),
        ("glm4_moe", {**ROUTED, "n_shared_experts": 0}, '"n_shared_experts" as an integer from 1 to 1024'),
        ("glm4_moe", {**ROUTED, "routed_scaling_factor": 0.0}, '"routed_scaling_factor" as a number over 0'),
        (
            "glm4_moe",
            {**ROUTED, "num_mtp_layers": 1, "num_nextn_predict_layers": 2},
            '"num_nextn_predict_layers" as 1 in config.json\n  found: 2',
        ),
        (
            "minimax_m2",
            {"attn_type_list": [1, 0]},
            '"attn_type_list" as a list of 1 (softmax attention) in config.json\n  found: [1, 0]',
        ),
        ("minimax_m2", {"rotary_dim": 200}, '"rotary_dim" as an integer from 2 to 128 in config.json\n  found: 200'),
        ("minimax_m2", {"use_qk_norm": False}, 'expected "use_qk_norm" as true in config.json\n  found: false'),
        ("minimax_m2", {"shared_intermediate_size": 8}, 'expected "shared_intermediate_size" as 0 in config.json'),
        ("ernie4_5_moe", {"moe_layer_interval": 0}, '"moe_layer_interval" as an integer from 1 to 4096'),
        ("ernie4_5_moe", {"moe_gate_act": "sigmoid"}, 'expected "moe_gate_act" as "softmax" in config.json'),
        ("ernie4_5_moe", {"moe_use_aux_free": False}, 'expected "moe_use_aux_free" as true in config.json'),
        ("dots1", {}, '"n_routed_experts" as an integer from 1 to 4096 in config.json\n  found: no such key'),
        ("dots1", {**ROUTED, "n_shared_experts": None}, '"n_shared_experts" as an integer from 1 to 1024'),
        ("hy_v3", {**HY, "mlp_layer_types": ["dense"]}, "a list of dense or sparse for each of num_hidden_layers (2)"),
        ("hy_v3", {**HY, "mlp_layer_types": ["dense", "moe"]}, 'in config.json\n  found: ["dense", "moe"]'),
        ("hy_v3", {**HY, "route_norm": False}, 'expected "route_norm" as true in config.json\n  found: false'),
        ("hy_v3", {**HY, "expert_hidden_dim": 64}, 'expected "expert_hidden_dim" as 32 in config.json\n  found: 64'),
    ],
)
def test_refused_by_message(kind: str, changes: dict[str, Any], said: str) -> None:
    with pytest.raises((CheckpointError, Unsupported), match=re.escape(said)):
        of(kind, **changes)


PUBLISHED: dict[str, dict[str, Any]] = {
    "mixtral": {"router_aux_loss_coef": 0.02, "output_router_logits": False, "num_experts": 8},
    "qwen2_moe": {"router_aux_loss_coef": 0.001, "use_sliding_window": False, "sliding_window": 0},
    "olmoe": {"output_router_logits": False, "clip_qkv": None},
    "phimoe": {"input_jitter_noise": 0.01, "hidden_dropout": 0.0, "use_sliding_window": False},
    "granitemoe": {"output_router_logits": False},
    "glm4_moe": {"num_local_experts": 128, "num_mtp_layers": 1},
    "minimax_m2": {
        **{"attn_type_list": [1, 1], "use_qk_norm": True, "qk_norm_type": "per_layer", "scoring_func": "sigmoid"},
        **{"num_mtp_modules": 3, "mtp_transformer_layers": 1, "use_mtp": True, "shared_intermediate_size": 0},
        **{"layernorm_mlp_beta": 1.0, "postnorm": False},
    },
    "ernie4_5_moe": {"moe_capacity": [64, 64, 64], "moe_gate": "topk", "moe_use_aux_free": True, "use_rmsnorm": True},
    "hy_v3": {
        **{"qk_norm": True, "route_norm": True, "moe_router_use_sigmoid": True, "first_k_dense_replace": 1},
        **{"moe_router_enable_expert_bias": True, "expert_hidden_dim": 1536, "enable_lm_head_fp32": True},
        **{"enable_moe_fp32_combine": False, "enable_attention_fp32_softmax": False},
    },
}


@pytest.mark.parametrize("kind", PUBLISHED)
def test_keys_of_published_files_that_change_nothing(kind: str) -> None:
    assert of(kind, **PUBLISHED[kind]) == of(kind)


def test_dots_and_phis_published_names() -> None:
    same = {"scoring_func": "noaux_tc", "moe_layer_freq": 1, "aux_loss_alpha": 0.001, "seq_aux": True}
    assert of("dots1", **ROUTED, **same) == of("dots1", **ROUTED)
    assert read("PhiMoEForCausalLM") == read("PhimoeForCausalLM")


def test_layers_that_draft_tokens_are_counted_by_two_names() -> None:
    counted = (of("mixtral", num_nextn_predict_layers=2), of("mixtral", num_mtp_layers=2), of("mixtral"))
    assert [one.drafts for one in counted] == [2, 2, 0]
    assert (of("glm4_moe").drafts, of("glm4_moe", num_nextn_predict_layers=0).drafts) == (1, 0)


def test_the_layers_that_have_experts() -> None:
    def sparse(kind: str, **changes: Any) -> list[int]:
        layers = of(kind, num_hidden_layers=6, **changes).layers
        return [index for index, layer in enumerate(layers) if isinstance(layer.mlp, Experts)]

    assert sparse("qwen2_moe", decoder_sparse_step=2, mlp_only_layers=[3]) == [1, 5]
    assert sparse("qwen2_moe", decoder_sparse_step=0) == sparse("qwen2_moe", num_experts=0) == []
    assert sparse("ernie4_5_moe", moe_layer_start_index=2, moe_layer_end_index=4) == [2, 3, 4]
    assert sparse("ernie4_5_moe", moe_layer_interval=2) == [1, 3, 5]
    assert sparse("glm4_moe", first_k_dense_replace=4) == [4, 5]
    assert sparse("hy_v3") == [1, 2, 3, 4, 5]


def test_windows_of_some_layers() -> None:
    def windows(kind: str, **changes: Any) -> list[int | None]:
        return [layer.mixer.window for layer in of(kind, num_hidden_layers=4, sliding_window=8, **changes).layers]

    on = {"use_sliding_window": True}
    assert windows("qwen2_moe", **on, max_window_layers=3) == [8, None, 8, None]
    assert windows("qwen2_moe", **on, layer_types=["full_attention"] * 3 + ["sliding_attention"]) == [None] * 3 + [8]
    assert windows("qwen2_moe") == [None] * 4
    assert windows("dots1", **ROUTED, max_window_layers=3) == [None, None, None, 8]


def test_a_phi_turns_with_short_factors_at_every_length() -> None:
    rope = of("phimoe", rope_scaling=LONG).layers[0].mixer.rope
    assert rope is not None and rope.parameters["long_factor"] == rope.parameters["short_factor"] == [1.0] * 8
    assert (rope.parameters["attention_factor"], rope.parameters["original_max_position_embeddings"]) == (1.2, 64)


def test_a_part_of_a_minimax_head_turns() -> None:
    def rotated(**changes: Any) -> int:
        mixer = of("minimax_m2", head_dim=32, **changes).layers[0].mixer
        assert mixer.rope is not None
        return mixer.rope.rotated(32)

    assert (rotated(), rotated(rotary_dim=16), rotated(partial_rotary_factor=0.25, rotary_dim=16)) == (32, 16, 8)
