"""Families with latent attention: what published config files say, what is refused, and what a position takes."""

from __future__ import annotations

import json
import re
from math import prod
from typing import Any

import pytest
from support.samples.families import CONFIG

from llmc.compiler.families.config import Config, parse_config
from llmc.compiler.families.spec import DecoderSpec, Experts, Latent, Temperature, cache_of
from llmc.passes.graph.experts import SIGMOID, SOFTMAX
from llmc.runtime.cpu.slots import sequence_bytes
from llmc.runtime.errors import CheckpointError, LlmcError, Unsupported

_ALL: dict[str, Any] = {
    **{"attention_bias": False, "attention_dropout": 0.0, "hidden_act": "silu", "initializer_range": 0.02},
    **{"norm_topk_prob": True, "pretraining_tp": 1, "rms_norm_eps": 1e-06, "tie_word_embeddings": False},
    **{"torch_dtype": "bfloat16", "use_cache": True, "kv_lora_rank": 512, "qk_nope_head_dim": 128},
    **{"qk_rope_head_dim": 64, "v_head_dim": 128},
}
_CODE = {"AutoConfig": "configuration_deepseek.DeepseekV3Config", "AutoModel": "modeling_deepseek.DeepseekV3Model"}
_DEEPSEEK: dict[str, Any] = {
    **_ALL,
    **{"auto_map": _CODE, "aux_loss_alpha": 0.001, "ep_size": 1, "seq_aux": True, "moe_layer_freq": 1},
}
_YARN: dict[str, Any] = {
    **{"beta_fast": 32, "beta_slow": 1, "factor": 40, "mscale": 1.0, "mscale_all_dim": 1.0, "type": "yarn"},
    "original_max_position_embeddings": 4096,
}
_V3: dict[str, Any] = {
    **_DEEPSEEK,
    **{"architectures": ["DeepseekV3ForCausalLM"], "model_type": "deepseek_v3", "bos_token_id": 0, "eos_token_id": 1},
    **{"first_k_dense_replace": 3, "hidden_size": 7168, "intermediate_size": 18432, "moe_intermediate_size": 2048},
    **{"max_position_embeddings": 163840, "n_group": 8, "n_routed_experts": 256, "n_shared_experts": 1},
    **{"num_attention_heads": 128, "num_experts_per_tok": 8, "num_hidden_layers": 61, "num_key_value_heads": 128},
    **{"num_nextn_predict_layers": 1, "q_lora_rank": 1536, "rope_scaling": _YARN, "rope_theta": 10000},
    **{"routed_scaling_factor": 2.5, "scoring_func": "sigmoid", "topk_group": 4, "topk_method": "noaux_tc"},
    **{"transformers_version": "4.33.1", "vocab_size": 129280},
}
_V2_LITE: dict[str, Any] = {
    **_DEEPSEEK,
    **{"architectures": ["DeepseekV2ForCausalLM"], "model_type": "deepseek_v2", "norm_topk_prob": False},
    **{"bos_token_id": 100000, "eos_token_id": 100001, "first_k_dense_replace": 1, "hidden_size": 2048},
    **{"intermediate_size": 10944, "max_position_embeddings": 163840, "moe_intermediate_size": 1408, "n_group": 1},
    **{"n_routed_experts": 64, "n_shared_experts": 2, "num_attention_heads": 16, "num_experts_per_tok": 6},
    **{"num_hidden_layers": 27, "num_key_value_heads": 16, "q_lora_rank": None, "rope_theta": 10000},
    **{"rope_scaling": {**_YARN, "mscale": 0.707, "mscale_all_dim": 0.707}, "routed_scaling_factor": 1.0},
    **{"scoring_func": "softmax", "topk_group": 1, "topk_method": "greedy", "vocab_size": 102400},
}
_GLM: dict[str, Any] = {
    **_ALL,
    **{"n_group": 1, "topk_group": 1, "topk_method": "noaux_tc", "num_nextn_predict_layers": 1, "rms_norm_eps": 1e-5},
    **{"n_shared_experts": 1, "vocab_size": 154880, "eos_token_id": [154820, 154827, 154829], "pad_token_id": 154820},
    **{"qk_nope_head_dim": 192, "v_head_dim": 256, "max_position_embeddings": 202752},
}
PUBLISHED: dict[str, dict[str, Any]] = {
    "DeepSeek-V2-Lite": _V2_LITE,
    "DeepSeek-V2": {
        **_V2_LITE,
        **{"hidden_size": 5120, "intermediate_size": 12288, "moe_intermediate_size": 1536, "n_routed_experts": 160},
        **{"num_attention_heads": 128, "num_hidden_layers": 60, "num_key_value_heads": 128, "q_lora_rank": 1536},
        **{"n_group": 8, "topk_group": 3, "topk_method": "group_limited_greedy", "routed_scaling_factor": 16.0},
    },
    "DeepSeek-V3": _V3,
    "Kimi-K2": {
        **_V3,
        **{"model_type": "kimi_k2", "first_k_dense_replace": 1, "n_group": 1, "topk_group": 1, "vocab_size": 163840},
        **{"n_routed_experts": 384, "num_attention_heads": 64, "num_key_value_heads": 64, "rope_theta": 50000.0},
        **{"num_nextn_predict_layers": 0, "routed_scaling_factor": 2.827, "max_position_embeddings": 131072},
        **{"bos_token_id": 163584, "eos_token_id": 163585},
        "rope_scaling": {**_YARN, "beta_fast": 1.0, "beta_slow": 1.0, "factor": 32.0},
    },
    "DeepSeek-V3.2": {
        **_V3,
        **{"architectures": ["DeepseekV32ForCausalLM"], "model_type": "deepseek_v32"},
        **{"index_head_dim": 128, "index_n_heads": 64, "index_topk": 2048},
    },
    "GLM-4.7-Flash": {
        **_GLM,
        **{"architectures": ["Glm4MoeLiteForCausalLM"], "model_type": "glm4_moe_lite", "hidden_size": 2048},
        **{"intermediate_size": 10240, "moe_intermediate_size": 1536, "num_attention_heads": 20, "q_lora_rank": 768},
        **{"n_routed_experts": 64, "routed_scaling_factor": 1.8, "num_experts_per_tok": 4, "first_k_dense_replace": 1},
        **{"num_hidden_layers": 47, "num_key_value_heads": 20, "partial_rotary_factor": 1.0, "rope_theta": 1000000},
        "rope_scaling": None,
    },
    "GLM-5": {
        **_GLM,
        **{"architectures": ["GlmMoeDsaForCausalLM"], "model_type": "glm_moe_dsa", "hidden_size": 6144},
        **{"intermediate_size": 12288, "moe_intermediate_size": 2048, "num_attention_heads": 64, "q_lora_rank": 2048},
        **{"n_routed_experts": 256, "routed_scaling_factor": 2.5, "num_experts_per_tok": 8, "num_hidden_layers": 78},
        **{"num_key_value_heads": 64, "first_k_dense_replace": 3, "ep_size": 1, "scoring_func": "sigmoid"},
        **{"index_head_dim": 128, "index_n_heads": 32, "index_topk": 2048, "indexer_rope_interleave": True},
        **{"rope_interleave": True, "moe_layer_freq": 1, "qk_head_dim": 256, "head_dim": 64},
        "rope_parameters": {"rope_theta": 1000000, "rope_type": "default"},
    },
}
"""config.json of published models: their keys and values, but for those that are the same everywhere."""
BILLIONS = {"DeepSeek-V2-Lite": (15.7, 2.7), "DeepSeek-V2": (235.7, 21.4), "DeepSeek-V3": (671.0, 37.6)}
"""Parameters, and those of a token with the embedding: DeepSeek's papers name 15.7 and 2.4, 236 and 21, 671 and 37."""


def published(name: str, **changes: Any) -> Config:
    return parse_config(json.dumps(PUBLISHED[name] | changes))


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_files_are_read(name: str) -> None:
    config = published(name)
    spec = config.decoder
    assert {type(layer.mixer) for layer in spec.layers} == {Latent} and not config.accepted
    assert {cache_of(layer.mixer).head_dim for layer in spec.layers} == {576}
    experts = [layer.mlp for layer in spec.layers if isinstance(layer.mlp, Experts)]
    assert len(spec.layers) - len(experts) == PUBLISHED[name]["first_k_dense_replace"]
    router = experts[0].router
    assert router.kind == (SOFTMAX if "V2" in name else SIGMOID)
    assert (router.groups, router.kept_groups) == (PUBLISHED[name]["n_group"], PUBLISHED[name]["topk_group"])
    assert (router.normed, router.best) == ("V2" not in name, 1 if name == "DeepSeek-V2" else 2)


@pytest.mark.parametrize("name", BILLIONS)
def test_they_have_as_many_parameters_as_their_papers_say(name: str) -> None:
    spec = published(name).decoder
    active = spec.active_parameters()
    assert active is not None
    assert (sum(map(prod, spec.tensors().values())) / 1e9, active / 1e9) == pytest.approx(BILLIONS[name], abs=0.06)


def test_a_position_of_deepseek_v3_takes_a_thirtieth_of_its_keys_and_values() -> None:
    """The rows against keys of 192 and values of 128 numbers of 128 heads."""
    caches = [cache_of(layer.mixer) for layer in published("DeepSeek-V3").decoder.layers]
    expanded = 4 * len(caches) * 128 * (192 + 128)
    assert sequence_bytes(caches, 1) == 4 * 61 * 576 <= 0.03 * expanded


@pytest.mark.parametrize("name", ["DeepSeek-V3.2", "GLM-5"])
def test_positions_end_where_an_indexer_would_choose(name: str) -> None:
    config = published(name)
    assert (config.decoder.positions, config.rope_is_dynamic) == (2048, False)
    assert config.decoder.limit.startswith("beyond index_topk an indexer chooses which keys each token sees")
    assert any(note.startswith("max_position_embeddings = 2048: beyond index_topk") for note in config.notes)
    short = published(name, max_position_embeddings=2048)
    assert (short.decoder.positions, short.decoder.limit) == (2048, "")
    assert not any("index_topk an" in note for note in short.notes)
    dynamic = published(name, rope_scaling={"type": "dynamic", "factor": 2.0}, rope_parameters=None)
    assert not dynamic.rope_is_dynamic, "the rope would allow more"


def test_mscale_of_all_dimensions_scales_scores_twice() -> None:
    for name, factor in (("DeepSeek-V2-Lite", 0.707), ("DeepSeek-V3", 1.0)):
        mixer = published(name).decoder.layers[0].mixer
        assert mixer.scale == pytest.approx(192**-0.5 * (0.1 * factor * 3.6888794541139363 + 1) ** 2)
    assert published("GLM-4.7-Flash").decoder.layers[0].mixer.scale == 256**-0.5


SMALL: dict[str, Any] = {
    **{"num_key_value_heads": 4, "kv_lora_rank": 24, "q_lora_rank": 40, "qk_nope_head_dim": 16, "qk_rope_head_dim": 8},
    **{"v_head_dim": 12, "moe_intermediate_size": 32, "n_routed_experts": 8, "n_shared_experts": 1},
    **{"num_experts_per_tok": 3, "first_k_dense_replace": 1, "n_group": 4, "topk_group": 2},
}


def small(name: str, **changes: Any) -> DecoderSpec:
    values = CONFIG | SMALL | {"architectures": [f"{name}ForCausalLM"]} | changes
    return parse_config(json.dumps(values)).decoder


YARN4 = {**_YARN, "llama_4_scaling_beta": 0.1}


@pytest.mark.parametrize(
    ("name", "changes", "said"),
    [
        (
            "DeepseekV3",
            {"num_key_value_heads": 2},
            '"num_key_value_heads" as num_attention_heads (4): latent attention',
        ),
        ("DeepseekV3", {"qk_rope_head_dim": 7}, '"qk_rope_head_dim" as an even number (rotary embedding turns pairs)'),
        ("DeepseekV3", {"qk_head_dim": 25}, '"qk_head_dim" as 24, as the other sizes say,'),
        ("DeepseekV3", {"head_dim": 16}, '"head_dim" as 8 or 24, as the other sizes say,'),
        ("DeepseekV3", {"n_group": 3}, '"n_group" as a number that divides 8 experts into groups of two or more'),
        ("DeepseekV3", {"topk_group": 1}, '"num_experts_per_tok" as at most 2, those of the kept groups,'),
        ("DeepseekV3", {"scoring_func": "softmax"}, 'expected "scoring_func" as "sigmoid" in config.json'),
        ("DeepseekV3", {"topk_method": "greedy"}, 'expected "topk_method" as "noaux_tc" in config.json'),
        ("DeepseekV3", {"moe_layer_freq": 2}, 'expected "moe_layer_freq" as 1 in config.json'),
        ("DeepseekV3", {"partial_rotary_factor": 0.5}, '"partial_rotary_factor" as 1 (the whole head is rotated)'),
        (
            "DeepseekV3",
            {"quantization_config": {"quant_method": "fp8", "weight_block_size": [128, 128]}},
            'found: quant_method "fp8"',
        ),
        ("DeepseekV2", {"topk_method": "noaux_tc"}, '"topk_method" as greedy or group_limited_greedy'),
        ("DeepseekV2", {"num_experts_per_tok": ...}, '"num_experts_per_tok" as an integer from 1 to 8'),
        (
            "DeepseekV2",
            {"topk_method": "group_limited_greedy", "n_group": 5},
            '"n_group" as a number that divides 8 experts into groups of one size',
        ),
        ("DeepseekV2", {"scoring_func": "sigmoid"}, 'expected "scoring_func" as "softmax" in config.json'),
        ("Glm4MoeLite", {"mlp_layer_types": ["dense"]}, '"mlp_layer_types" as a list of 2 times "dense" or "sparse"'),
        ("Glm4MoeLite", {"mlp_layer_types": ["dense", "moe"]}, '"mlp_layer_types" as a list of 2 times "dense" or'),
        ("Glm4MoeLite", {"first_k_dense_replace": 0}, 'expected "first_k_dense_replace" as 1 in config.json'),
        ("Mistral4", {"rope_parameters": {"rope_type": "linear", "factor": 2.0}}, 'expected the rope type "yarn" in'),
        (
            "Mistral4",
            {"rope_parameters": {**YARN4, "partial_rotary_factor": 0.5}},
            '"partial_rotary_factor" as qk_rope_head_dim of all elements of a head (8 of 24)',
        ),
        ("Mistral4", {"rope_parameters": _YARN}, '"llama_4_scaling_beta" as a number'),
        ("DeepseekV32", {"index_topk": 0}, '"index_topk" as an integer from 1 to 2147483647'),
        ("DeepseekV32", {"rope_interleave": False}, 'expected "rope_interleave" as true in config.json'),
        ("DeepseekV32", {"layer_types": ["full_attention"] * 2}, 'expected "layer_types" of indexed_attention in'),
        ("GlmMoeDsa", {"indexer_rope_interleave": False}, 'expected "indexer_rope_interleave" as true in config.json'),
    ],
)
def test_what_a_family_does_not_compute_is_refused(name: str, changes: dict[str, Any], said: str) -> None:
    values = CONFIG | SMALL | {"architectures": [f"{name}ForCausalLM"]} | changes
    text = json.dumps({key: value for key, value in values.items() if value is not ...})
    with pytest.raises((CheckpointError, Unsupported), match=re.escape(said)):
        parse_config(text)


def test_a_file_of_kimi_k2_without_its_model_type_is_deepseek_v3() -> None:
    assert published("Kimi-K2").family.name == "kimi_k2"
    values = {key: value for key, value in PUBLISHED["Kimi-K2"].items() if key != "model_type"}
    assert parse_config(json.dumps(values)).family.name == "deepseek_v3"
    with pytest.raises(LlmcError, match="expected an architecture that `llmc families` lists"):
        published("Kimi-K2", architectures=["DeepseekV9ForCausalLM"])


def test_mistral_4_turns_the_last_part_of_a_head_and_grows_with_the_position() -> None:
    mixer = small("Mistral4", rope_parameters=YARN4).layers[0].mixer
    assert isinstance(mixer, Latent) and mixer.rope.rotated(8) == 8 and mixer.rope.interleaved
    assert mixer.temperature == Temperature(0.1, 4096)
    default = small("Mistral4").layers[0].mixer
    assert default.temperature == Temperature(0.1, 8192)
    assert default.rope is not None and default.rope.parameters["factor"] == 128.0
