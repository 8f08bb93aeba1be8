"""Architectures that llmc does not compute: the refusal lists those that it does, the nearest kin, and what differs."""

from __future__ import annotations

import json
import re
from functools import cache
from typing import Any

import pytest
from transformers import CONFIG_MAPPING
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from llmc.compiler.families import FAMILIES
from llmc.compiler.families.config import parse_config
from llmc.runtime.errors import CheckpointError, Unsupported

SUPPORTED = "LlamaForCausalLM, MistralForCausalLM, Qwen2ForCausalLM, Qwen3ForCausalLM"
NO_DEFAULT = {"gemma4_assistant"}
"""Types whose config class refuses its own defaults."""
FOREIGN = sorted({*MODEL_FOR_CAUSAL_LM_MAPPING_NAMES} - {family.name for family in FAMILIES.values()} - NO_DEFAULT)
KIN: dict[str, tuple[str, tuple[str, ...]]] = {
    "mixtral": ("Mistral", ("num_experts_per_tok = 2", "num_local_experts = 8")),
    "qwen2_moe": ("Qwen2", ("num_experts = 60", "shared_expert_intermediate_size")),
    "qwen3_moe": ("Qwen3", ("num_experts_per_tok = 8", "moe_intermediate_size = 768")),
    "qwen3_next": ("Qwen3", ("linear_num_key_heads = 16", '"partial_rotary_factor" as 1')),
    "gemma": ("Llama", ('"hidden_act" as one of silu, swish in config.json, found "gelu_pytorch_tanh"',)),
    "gemma2": ("Mistral", ("attn_logit_softcapping = 50.0", "final_logit_softcapping = 30.0")),
    "gemma3_text": ("Mistral", ("query_pre_attn_scalar = 256", "the same for all layers")),
    "gemma3": ("Mistral", ("vision_config = {", "query_pre_attn_scalar = 256")),
    "gemma4_text": ("Mistral", ("per_layer_config = {", "layers of different shapes")),
    "gpt_oss": ("Qwen3", ("num_local_experts = 128", "swiglu_limit = 7.0", '"layer_types" of full_attention')),
    "phi": ("Mistral", ("layer_norm_eps = 1e-05", '"partial_rotary_factor" as 1', 'found "gelu_new"')),
    "phimoe": ("Mistral", ("num_local_experts = 16",)),
    "cwm": ("Mistral", ('"layer_types" of sliding_attention in config.json, found "full_attention" in layer 0',)),
    "smollm3": ("Llama", ("no_rope_layer_interval = 4",)),
    "granite": ("Llama", ("embedding_multiplier = 1.0", "logits_scaling = 1.0")),
    "starcoder2": ("Mistral", ("norm_epsilon = 1e-05", "use_bias = true")),
    "deepseek_v3": ("Llama", ("first_k_dense_replace = 3", "kv_lora_rank = 512")),
    "cohere": ("Llama", ("logit_scale = 0.0625",)),
    "olmo3": ("Mistral", ("the same for all layers",)),
    "olmoe": ("Llama", ("num_experts_per_tok = 8",)),
    "stablelm": ("Mistral", ("layer_norm_eps = 1e-05", '"partial_rotary_factor" as 1')),
    "arcee": ("Llama", ('found "relu2"',)),
    "seed_oss": ("Llama", ("residual_dropout = 0.1",)),
    "nemotron": ("Llama", ("norm_eps = 1e-05",)),
    "exaone4": ("Mistral", ("sliding_window_pattern = 4",)),
    "llama4_text": ("Llama", ("attention_chunk_size = 8192 (attention in chunks)",)),
}
"""Nearest kin by type, and a part of what the refusal says of the difference."""
SAME_FIELDS = {"helium": "Llama", "olmo": "Llama", "olmo2": "Llama", "phi3": "Mistral", "ernie4_5": "Mistral"}
"""Kin whose config shows no difference: norms, fused tensors and rotation differ in code alone."""
NONE_NEAR = ("gpt2", "bloom", "mpt", "rwkv", "mamba", "xlnet", "bart", "ctrl")


@cache
def written(model_type: str) -> dict[str, Any]:
    """config.json as transformers writes it for the defaults of a type."""
    config = CONFIG_MAPPING[model_type]()
    named = MODEL_FOR_CAUSAL_LM_MAPPING_NAMES.get(model_type, "")
    config.architectures = [named if isinstance(named, str) else named[0]]
    return json.loads(config.to_json_string())


def refusal(config: dict[str, Any]) -> Unsupported:
    with pytest.raises(Unsupported) as caught:
        parse_config(json.dumps(config))
    return caught.value


@pytest.mark.parametrize("model_type", FOREIGN)
def test_every_foreign_architecture_gets_the_list_and_its_kin(model_type: str):
    """23 types were asked for; these are all causal language models that transformers knows."""
    config = written(model_type)
    error = refusal(config)
    assert error.asked == f"expected an architecture of {SUPPORTED} in config.json"
    assert error.found.startswith(config["architectures"][0])
    assert error.fix == "a checkpoint of one of these architectures; docs/adding.md tells how llmc learns another"
    assert not re.search(r"did you mean|renam|\barchitectures\b.*instead", error.found)
    kin = re.search(r"nearest to (\w+)", error.found)
    assert kin is None or kin[1] in FAMILIES
    assert (kin is None) == (", near none of them, as its config has no " in error.found)


@pytest.mark.parametrize("model_type", FOREIGN)
def test_the_fields_that_differ_are_fields_of_this_config_and_not_of_the_kin(model_type: str):
    config, found = written(model_type), refusal(written(model_type)).found
    lines = re.search(r"\n    (\w+) has no field (.*)", found)
    if lines is None:
        return
    theirs = CONFIG_MAPPING[FAMILIES[lines[1]].name]().to_dict()
    values = {**config, **(config.get("text_config") or {})}
    listed = re.findall(r"(?:^|, )(\w+) = ", lines[2])
    assert listed
    for key in listed:
        assert key in values and key not in theirs, key


@pytest.mark.parametrize("model_type", KIN)
def test_the_nearest_kin_and_what_differs(model_type: str):
    kin, said = KIN[model_type]
    found = refusal(written(model_type)).found
    assert f", nearest to {kin}ForCausalLM; fields that differ:\n    " in found
    assert [one for one in said if one not in found] == []


@pytest.mark.parametrize("model_type", SAME_FIELDS)
def test_where_no_field_differs_the_code_does(model_type: str):
    assert refusal(written(model_type)).found.endswith(
        f"nearest to {SAME_FIELDS[model_type]}ForCausalLM, with the same fields; what differs is in its code, "
        "which config.json does not show"
    )


@pytest.mark.parametrize("model_type", NONE_NEAR)
def test_what_is_no_such_decoder_has_no_kin(model_type: str):
    missing = re.search(", near none of them, as its config has no (.*)$", refusal(written(model_type)).found)
    assert missing and not {*missing[1].split(", ")} & written(model_type).keys()


def test_a_long_list_of_fields_is_cut():
    found = refusal(written("deepseek_v3")).found
    assert len(re.findall(r"\w+ = ", found)) == 8 and " and 9 more\n" in found + "\n"


LLAMA = json.loads(CONFIG_MAPPING["llama"]().to_json_string())


@pytest.mark.parametrize(
    "name", ["LamaForCausalLM", "LLaMAForCausalLM", "LlamaModel", "LlamaForSequenceClassification"]
)
def test_a_name_near_a_supported_one_is_not_called_a_typing_error(name: str):
    """Its weights belong to other code: a reward model has Llama's fields and another head."""
    error = refusal({**LLAMA, "architectures": [name]})
    assert error.found.startswith(f"{name}, nearest to LlamaForCausalLM, with the same fields; ")
    assert "did you mean" not in str(error)


def test_a_type_that_transformers_computes_with_other_code():
    """transformers chooses the code by model_type."""
    error = refusal({**LLAMA, "architectures": ["LlamaForCausalLM"], "model_type": "internlm3"})
    assert error.found.startswith('LlamaForCausalLM of model_type "internlm3", nearest to LlamaForCausalLM')
    error = refusal({"model_type": "mixtral", **{key: LLAMA[key] for key in ("hidden_size", "vocab_size")}})
    assert error.found.startswith('no architectures, model_type "mixtral", near none of them, as its config has no')


def test_a_foreign_architecture_is_named_before_a_contradiction_in_its_config():
    config = {**LLAMA, "architectures": ["XForCausalLM"], "vocab_size": 10, "text_config": {"vocab_size": 11}}
    assert refusal(config).found.startswith("XForCausalLM")
    with pytest.raises(CheckpointError, match='expected one value of "vocab_size"'):
        parse_config(json.dumps({**config, "architectures": ["LlamaForCausalLM"]}))


@pytest.mark.parametrize(
    "broken", [{"hidden_size": "x"}, {"rope_parameters": 3}, {"model_type": "x"}, {"vocab_size": []}]
)
def test_a_damaged_config_of_a_foreign_architecture_is_refused_as_one(broken: dict[str, Any]):
    assert refusal({**LLAMA, "architectures": ["XForCausalLM"], **broken}).found.startswith("XForCausalLM, nearest to")
