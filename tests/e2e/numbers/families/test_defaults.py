"""What a family takes where a config says nothing is what its config class of transformers takes."""

from __future__ import annotations

import dataclasses
import json
from typing import Any

import pytest
from transformers import CONFIG_MAPPING

from llmc.compiler.families import FAMILIES
from llmc.compiler.families.config import Config, parse_config

SIZES: dict[str, int] = {
    "hidden_size": 256,
    "intermediate_size": 96,
    "num_hidden_layers": 12,
    "num_attention_heads": 32,
    "vocab_size": 262144,
}
"""What every config.json says; 32 heads are a multiple of every default of key and value heads."""
NEEDED: dict[str, dict[str, Any]] = {"hunyuan_v1_dense": {"head_dim": 8}}
"""What a family cannot do without, though its class has a default, with which transformers fails."""
NO_FIELD: dict[tuple[str, str], Any] = {
    ("gemma3_text", "sliding_window_pattern"): 6,
    ("gemma4_text", "global_head_dim"): 512,
}
"""Keys that a class reads though they are not fields of it, with a value; all other keys without a field are null."""
OFF = (None, False)
"""A feature that is off: llmc says null where a class says false."""
KINDS = sorted(family.name for family in FAMILIES.values())


@pytest.mark.parametrize("kind", KINDS)
def test_values_of_absent_keys_are_those_of_the_config_class(kind: str) -> None:
    """transformers 5.23.0, configuration_X.py of each family."""
    (family,) = (one for one in FAMILIES.values() if one.name == kind)
    fields = {one.name: one.default for one in dataclasses.fields(CONFIG_MAPPING[kind])}
    for key, value in family.defaults.items():
        expected = fields.get(key, NO_FIELD.get((kind, key)))
        assert value == expected or (value in OFF and expected in OFF), key


def parsed(kind: str, values: dict[str, Any]) -> Config:
    (family,) = (one for one in FAMILIES.values() if one.name == kind)
    return parse_config(json.dumps({"architectures": [family.architecture], **values}))


@pytest.mark.parametrize("kind", KINDS)
def test_a_config_without_defaults_is_the_one_that_transformers_saves(kind: str) -> None:
    """Ropes, kinds of layers and what depends on other keys too: the class writes all of it into the file."""
    given = SIZES | NEEDED.get(kind, {})
    make: Any = CONFIG_MAPPING[kind]
    saved = json.loads(make(**given).to_json_string(use_diff=False))
    short, long = parsed(kind, given), parsed(kind, saved)
    assert short.decoder == long.decoder
    assert (short.bos_id, short.eos_ids) == (long.bos_id, long.eos_ids)
