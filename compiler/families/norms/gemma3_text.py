"""Gemma 3: norms of heads, five layers with a window for each that sees all, two ropes, no caps."""

from __future__ import annotations

from dataclasses import replace

from ....runtime.errors import Unsupported
from ...config.rope import RopeDefaults
from ..reading import ConfigReader, Family
from ..spec import LayerSpec
from .gemma2 import FAMILY as GEMMA2
from .gemma2 import capped, sandwich


def _layer(config: ConfigReader, index: int) -> LayerSpec:
    fields = config.fields
    if fields.has("attn_logit_softcapping"):  # transformers 5.23 reads it and caps nothing
        asked = f'expected "attn_logit_softcapping" as null in {fields.what}'
        raise Unsupported(asked, found="a cap on scores, which no Gemma 3 was trained with")
    every = fields.need_integer("sliding_window_pattern", 1, 4096)
    if config.kind(index, every) == "sliding_attention":
        # theta of windows had a key of its own, and rope_scaling was never for them
        old = {"rope_theta": fields.values.get("rope_local_base_freq"), "rope_scaling": None}
        rope = RopeDefaults(nested="sliding_attention", old=old)
    else:
        old = {key: fields.values.get(key) for key in ("rope_theta", "rope_scaling")}
        rope = RopeDefaults(1e6, old=old)
    layer = sandwich(config, index, every, rope)
    norms = {
        f"{name}_norm": config.norm(f"self_attn.{name}_norm", config.head_dim, plus_one=True) for name in ("q", "k")
    }
    return replace(layer, mixer=replace(layer.mixer, **norms))


FAMILY = Family(
    "gemma3_text",
    "Gemma3ForCausalLM",
    _layer,
    defaults={
        **GEMMA2.defaults,
        "max_position_embeddings": 131072,
        "attn_logit_softcapping": None,
        "final_logit_softcapping": None,
        "sliding_window_pattern": 6,
        "rope_local_base_freq": None,
        "_sliding_window_pattern": None,
    },
    decoder=capped,
    example={"query_pre_attn_scalar": 168},
)
