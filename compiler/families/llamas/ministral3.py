"""Ministral 3: Mistral with YaRN, whose queries grow with each length that the model was first trained for."""

from __future__ import annotations

from dataclasses import replace

from ...config.fields import Fields
from ...config.rope import RopeDefaults
from ..reading import ConfigReader, Family
from ..spec import LayerSpec, Temperature
from .mistral import FAMILY as MISTRAL

_BETA, _ORIGINAL = "llama_4_scaling_beta", "original_max_position_embeddings"
_KEYS = frozenset((_BETA, _ORIGINAL, "max_position_embeddings"))
_YARN = {"type": "yarn", "rope_theta": 1e6, "factor": 16.0, "mscale": 1.0, "mscale_all_dim": 1.0}
_ABSENT = {**_YARN, _ORIGINAL: 16384, _BETA: 0.1}
"""The settings of a config that has none."""
_LARGE = {"max_position_embeddings": 262144, "head_dim": 128}


def _layer(config: ConfigReader, index: int) -> LayerSpec:
    given = config.fields.table("rope_parameters") or config.fields.table("rope_scaling")
    old = {"rope_scaling": _ABSENT, "rope_theta": config.fields.values.get("rope_theta")}
    rope = config.rope(RopeDefaults(keys=_KEYS, old=None if given else old))
    own = Fields(given or _ABSENT, f"the rope settings of {config.fields.what}")
    original = rope.parameters.get(_ORIGINAL) or own.need_integer(_ORIGINAL, 1, 2**31 - 1)
    assert isinstance(original, int)
    temperature = Temperature(own.need_number(_BETA, 0.0, 1e6), original)
    mixer = config.attention(rope=rope, window=config.integer("sliding_window", 1))
    return config.layer(replace(mixer, temperature=temperature), config.mlp())


FAMILY = Family(
    "ministral3",
    "Ministral3ForCausalLM",
    _layer,
    defaults={**MISTRAL.defaults, **_LARGE, "rms_norm_eps": 1e-5, "sliding_window": None},
)
