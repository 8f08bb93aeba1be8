"""Multi-head latent attention as DeepSeek's families have it: keys of the config, and names of modules."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from ..config.rope import RopeConfig
from .reading import ConfigReader
from .spec import Latent, Linear

KEYS: Mapping[str, Any] = {
    "kv_lora_rank": 512,
    "q_lora_rank": 1536,
    "qk_rope_head_dim": 64,
    "v_head_dim": 128,
    "qk_nope_head_dim": 128,
    "qk_head_dim": None,
}
"""Its keys, with the defaults of DeepSeek-V3."""


def latent(config: ConfigReader, *, interleaved: bool = True, bias: bool = False) -> Latent:
    """Latent attention; queries have a rank of their own if `q_lora_rank` is given."""
    fields, hidden, heads = config.fields, config.hidden_size, config.heads
    nope, rope_dim, value, rank = (
        fields.need_integer(key, 1, 2**16)
        for key in ("qk_nope_head_dim", "qk_rope_head_dim", "v_head_dim", "kv_lora_rank")
    )
    if rope_dim % 2:
        raise fields.refuse("qk_rope_head_dim", "an even number (rotary embedding turns pairs)")
    for key, known in (("qk_head_dim", (nope + rope_dim,)), ("head_dim", (rope_dim, nope + rope_dim))):
        if fields.has(key) and fields.values[key] not in known:
            raise fields.refuse(key, f"{' or '.join(map(str, known))}, as the other sizes say,")
    given = fields.integer("q_lora_rank", 1, 2**16)
    queries, size = heads * (nope + rope_dim), given or hidden
    rope = replace(config.rope(head_dim=rope_dim), interleaved=interleaved)
    return Latent(
        heads,
        nope,
        rope_dim,
        value,
        rank,
        (nope + rope_dim) ** -0.5 * _temperature(rope),
        rope,
        q=Linear("self_attn.q_b_proj" if given else "self_attn.q_proj", queries, size),
        kv_down=Linear("self_attn.kv_a_proj_with_mqa", rank + rope_dim, hidden, bias),
        kv_norm=config.norm("self_attn.kv_a_layernorm", rank),
        kv_up=Linear("self_attn.kv_b_proj", heads * (nope + value), rank, kept=True),
        o=Linear("self_attn.o_proj", hidden, heads * value, bias),
        q_down=Linear("self_attn.q_a_proj", given, hidden, bias) if given else None,
        q_norm=config.norm("self_attn.q_a_layernorm", given) if given else None,
    )


def _temperature(rope: RopeConfig) -> float:
    """What a scaled rope multiplies the scale of scores by: the square of the factor of mscale_all_dim."""
    all_dim, factor = rope.parameters.get("mscale_all_dim", 0), rope.parameters.get("factor", 1)
    assert isinstance(all_dim, int | float) and isinstance(factor, int | float)
    if rope.type == "default" or not all_dim or factor <= 1:
        return 1.0
    return (0.1 * all_dim * math.log(factor) + 1.0) ** 2
