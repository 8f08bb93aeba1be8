"""The models that are refused by name: transformers knows each by this name, and llmc computes none of them."""

from __future__ import annotations

from functools import cache

import pytest
from transformers import CONFIG_MAPPING
from transformers.models.auto import modeling_auto

from llmc.compiler.config.foreign import FOREIGN, MISSING, missing, plain
from llmc.compiler.families import FAMILIES

NAMES = [name for names in FOREIGN for name in names.split()]


@cache
def architectures() -> dict[str, set[str]]:
    """Every architecture of transformers by model type."""
    found: dict[str, set[str]] = {}
    for table in (value for name, value in vars(modeling_auto).items() if name.endswith("_MAPPING_NAMES")):
        for model_type, named in table.items():
            found.setdefault(model_type, set()).update([named] if isinstance(named, str) else named)
    return found


@pytest.mark.parametrize("name", NAMES)
def test_transformers_knows_the_name(name: str):
    types = {plain(one) for one in CONFIG_MAPPING}
    assert plain(name) in types | {plain(one) for named in architectures().values() for one in named}


@pytest.mark.parametrize("model_type", [one for one in architectures() if plain(one) in MISSING])
def test_its_architectures_are_refused_without_the_type(model_type: str):
    """A config.json may lack `model_type`. HunYuan's experts and Nemotron's omni model are known by it alone."""
    found = {one: missing(one, "") for one in architectures()[model_type] if "ForCausalLM" in one}
    assert model_type in ("hunyuan_v1_moe",) or {*found.values()} <= {missing("", model_type)}, found


def test_each_name_is_there_once_and_is_no_family():
    assert len({plain(name) for name in NAMES}) == len(NAMES) == len(MISSING)
    assert [family.name for family in FAMILIES.values() if missing(family.architecture, family.name)] == []


@pytest.mark.parametrize(
    ("architecture", "model_type", "first"),
    [
        ("Qwen3NextForCausalLM", "qwen3_next", "gated delta net (linear attention with a recurrent state)"),
        ("Qwen3_5MoeForCausalLM", "", "gated delta net (linear attention with a recurrent state)"),
        ("GPT2LMHeadModel", "", "learned embeddings of positions"),
        ("AXK1ForCausalLM", "axk1", "multi-head latent attention"),
        ("Gemma3nForConditionalGeneration", "", "AltUp (several residual streams)"),
        ("BertModel", "", "attention to later tokens (an encoder: it generates no text)"),
        ("AXK2ForCausalLM", "axk2", "sparse attention (an indexer chooses keys)"),
    ],
)
def test_what_is_missing_is_found_by_either_name(architecture: str, model_type: str, first: str):
    assert missing(architecture, model_type)[0] == first


def test_of_an_unknown_name_nothing_is_known():
    assert missing("XForCausalLM", "x") == missing("", "") == missing("LlamaForCausalLM", "llama") == ()
