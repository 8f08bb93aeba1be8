"""Architectures that llmc does not compute: the refusal lists those that it does, the nearest kin, and what differs."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from functools import cache
from typing import Any

import pytest
from transformers import CONFIG_MAPPING
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from llmc.compiler.coverage.rows import rows, wrappers
from llmc.compiler.families import FAMILIES
from llmc.compiler.families.config import parse_config
from llmc.compiler.families.kin import nearest_kin
from llmc.runtime.errors import CheckpointError, Unsupported

NO_DEFAULT = {"gemma4_assistant"}
"""Types whose config class refuses its own defaults."""
COMPUTED = {row.model_type for row in (*rows(), *wrappers())}
FOREIGN = sorted({*MODEL_FOR_CAUSAL_LM_MAPPING_NAMES} - COMPUTED - NO_DEFAULT)
KIN: dict[str, tuple[str, tuple[str, ...]]] = {
    "granitemoeshared": ("GraniteMoe", ("shared_intermediate_size = 0",)),
    "exaone_moe": ("Exaone4", ("num_experts_per_tok = 8", "moe_intermediate_size = 1024")),
    "minimax": ("MiniMaxM2", ("linear_attn_alpha_factor = 1", '"layer_types" of full_attention')),
    "qwen3_next": ("Qwen3Moe", ("linear_num_key_heads = 16", "partial_rotary_factor")),
    "nemotron": ("Llama", ("norm_eps = 1e-05",)),
}
"""Nearest kin by type, and a part of what the refusal says of the difference."""
SAME_FIELDS = {"helium": "Llama", "olmo": "Olmo2", "flex_olmo": "Olmoe"}
"""Kin whose config shows no difference: norms and rotation differ in code alone."""
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
    assert error.asked == "expected an architecture that `llmc families` lists in config.json"
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


LLAMA = json.loads(CONFIG_MAPPING["llama"]().to_json_string())
LLAMA_FAMILY = FAMILIES["LlamaForCausalLM"]
NAMED = {
    "gemma5": "gemma3_text",
    "gemma5_text": "gemma3_text",
    "gemmax": "gemma3_text",
    "gemma2_moe": "gemma2",
    "olmoe": "olmo2",
    "phimoe": "phi",
    "llamas": "llama",
    "": "gemma3_text",
    "gem": "gemma3_text",
    "mixtral": "gemma3_text",
}


@pytest.mark.parametrize("model_type", NAMED)
def test_a_family_of_the_same_word_is_nearest(model_type: str):
    """Of two Gemmas, that which has the config's fields; and so of all families, if the name tells nothing."""
    more = {"gemma2": ("attn_logit_softcapping",), "gemma3_text": ("rope_local_base_freq",), "olmo2": (), "phi": ("a",)}
    families = [LLAMA_FAMILY]
    for name, keys in more.items():
        own = {**LLAMA_FAMILY.defaults, **dict.fromkeys(keys)}
        families.append(replace(LLAMA_FAMILY, name=name, architecture=name, defaults=own))
    values = {**LLAMA, "model_type": model_type, "rope_local_base_freq": 10000.0}
    if model_type == "gemma2_moe":
        values["attn_logit_softcapping"] = values.pop("rope_local_base_freq")
    kin = NAMED[model_type].replace("llama", "LlamaForCausalLM")
    assert nearest_kin(values, families).startswith(f"nearest to {kin}")
    assert nearest_kin(values, reversed(families)).startswith(f"nearest to {kin}")


def test_without_a_type_the_architecture_names_the_kin():
    other = replace(LLAMA_FAMILY, name="gemma3_text", architecture="Gemma3ForCausalLM")
    values = {key: value for key, value in LLAMA.items() if key != "model_type"}
    found = nearest_kin({**values, "architectures": ["Gemma5ForCausalLM"]}, [LLAMA_FAMILY, other])
    assert found.startswith("nearest to Gemma3ForCausalLM, with the same fields")


def test_a_family_of_layernorms_needs_no_epsilon_of_an_rmsnorm():
    other = replace(LLAMA_FAMILY, name="gpt", epsilon="layer_norm_eps", defaults={"layer_norm_eps": None})
    values = {key: value for key, value in LLAMA.items() if key != "rms_norm_eps"} | {"model_type": "gpt9"}
    assert "LlamaForCausalLM needs layer_norm_eps, absent here" in nearest_kin(values, [other])
    assert "needs" not in nearest_kin({**values, "layer_norm_eps": 1e-5}, [other])


def test_what_is_missing_stands_before_the_kin():
    error = refusal(written("qwen3_next"))
    assert error.found.startswith(
        "Qwen3NextForCausalLM (not computed: gated delta net (linear attention with a recurrent state), "
        "output gate of attention, mixture of experts), nearest to Qwen3MoeForCausalLM; fields that differ:\n    "
    )


def test_what_is_missing_of_a_text_model_is_named():
    inner = {**LLAMA, "model_type": "exaone_moe"}
    error = refusal({"architectures": ["InternVLForConditionalGeneration"], "text_config": inner})
    assert error.found == 'model_type "exaone_moe" (not computed: mixture of experts)'


def test_a_long_list_of_fields_is_cut():
    found = refusal(written("exaone_moe")).found
    assert len(re.findall(r"\w+ = ", found)) == 8 and " and 2 more\n" in found + "\n"


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
    error = refusal({"model_type": "exaone_moe", **{key: LLAMA[key] for key in ("hidden_size", "vocab_size")}})
    assert error.found.startswith(
        'no architectures, model_type "exaone_moe" (not computed: mixture of experts), near none'
    )


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
