"""OLMo 3: OLMo 2 with three layers with a window for each that sees all; scaled ropes are of the latter only."""

from __future__ import annotations

from ....runtime.errors import Unsupported
from ...config.rope import RopeConfig, RopeDefaults
from ..reading import ConfigReader, Family
from ..spec import LayerSpec
from .olmo2 import FAMILY as OLMO2
from .olmo2 import after, attention


def _rope(config: ConfigReader, kind: str) -> RopeConfig:
    fields = config.fields
    new, old = fields.table("rope_parameters"), [key for key in ("rope_theta", "rope_scaling") if fields.has(key)]
    if new and (old or not new.keys() <= {"full_attention", "sliding_attention"}):
        # transformers 5.23 ignores settings that are not nested, and takes rope_scaling beside those that are
        alone = "settings of full_attention and sliding_attention, without rope_theta and rope_scaling,"
        raise fields.refuse("rope_parameters", alone)
    # in the old spelling, both keys were for layers that see all
    spelled = {key: fields.values[key] for key in old} if kind == "full_attention" else {}
    rope = config.rope(RopeDefaults(5e5, nested=kind, old=spelled))
    if rope.parameters.get("truncate") is False:
        asked = f'expected "truncate" as true in the rope settings of {fields.what}'
        raise Unsupported(asked, found="false, which transformers 5 ignores where layers have ropes of their own")
    return rope


def _layer(config: ConfigReader, index: int) -> LayerSpec:
    kind = config.kind(index, 4)
    window = config.fields.need_integer("sliding_window", 1, 2**31 - 1) if kind == "sliding_attention" else None
    return after(config, attention(config, window=window, rope=_rope(config, kind)))


FAMILY = Family("olmo3", "Olmo3ForCausalLM", _layer, defaults={**OLMO2.defaults, "sliding_window": 4096})
