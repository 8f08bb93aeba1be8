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
_ONE_EACH = {"num_key_value_heads": 32}
NEEDED: dict[str, dict[str, Any]] = {
    "dots1": {"n_routed_experts": 8, "n_shared_experts": 1, "num_experts_per_tok": 2},
    "hunyuan_v1_dense": {"head_dim": 8},
    "deepseek_v2": {"num_experts_per_tok": 2},
    **dict.fromkeys(("deepseek_v3", "deepseek_v32", "glm4_moe_lite", "glm_moe_dsa"), _ONE_EACH),
}
"""What a family cannot do without, though its class has a default, with which transformers fails."""
ELSEWHERE: dict[tuple[str, str], Any] = {
    ("cohere2", "sliding_window_pattern"): 4,
    ("gemma3_text", "sliding_window_pattern"): 6,
    ("gemma4_text", "global_head_dim"): 512,
    ("glm", "eos_token_id"): [151329, 151336, 151338],
    ("glm4", "eos_token_id"): [151329, 151336, 151338],
}
"""Values that a class does not have as the default of a field: it takes them in `__post_init__`."""
OFF = (None, False)
"""A feature that is off: llmc says null where a class says false."""
BY_KIND = {family.name: family for family in FAMILIES.values()}


@pytest.mark.parametrize("kind", BY_KIND)
def test_values_of_absent_keys_are_those_of_the_config_class(kind: str) -> None:
    """transformers 5.23.0, configuration_X.py of each family."""
    fields = {one.name: one for one in dataclasses.fields(CONFIG_MAPPING[kind])}
    for key, value in BY_KIND[kind].defaults.items():
        expected = ELSEWHERE.get((kind, key))
        if expected is None and key in fields:
            made = fields[key].default_factory
            expected = fields[key].default if made is dataclasses.MISSING else made()
        assert value == expected or (value in OFF and expected in OFF), key


def parsed(kind: str, values: dict[str, Any]) -> Config:
    return parse_config(json.dumps({"architectures": [BY_KIND[kind].architecture], **values}))


@pytest.mark.parametrize("kind", BY_KIND)
def test_a_config_without_defaults_is_the_one_that_transformers_saves(kind: str) -> None:
    """Ropes, kinds of layers and what depends on other keys too: the class writes all of it into the file."""
    given = SIZES | NEEDED.get(kind, {})
    make: Any = CONFIG_MAPPING[kind]
    saved = json.loads(make(**given).to_json_string(use_diff=False))
    short, long = parsed(kind, given), parsed(kind, saved)
    assert short.decoder == long.decoder
    assert (short.bos_id, short.eos_ids) == (long.bos_id, long.eos_ids)
