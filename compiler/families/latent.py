"""Multi-head latent attention and experts beside it, as DeepSeek's families have them: keys, and names of modules."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from ..config.rope import RopeConfig
from .experts import count, deepseek_router, with_shared
from .reading import ConfigReader
from .spec import DecoderSpec, Latent, LayerSpec, Linear, Mlp, Norm

KEYS: Mapping[str, Any] = {
    "kv_lora_rank": 512,
    "q_lora_rank": 1536,
    "qk_rope_head_dim": 64,
    "v_head_dim": 128,
    "qk_nope_head_dim": 128,
    "qk_head_dim": None,
}
"""The keys of latent attention, with the defaults of DeepSeek's families."""
EXPERTS: Mapping[str, Any] = {
    "moe_intermediate_size": 2048,
    "n_shared_experts": 1,
    "n_routed_experts": 256,
    "routed_scaling_factor": 2.5,
    "n_group": 8,
    "topk_group": 4,
    "num_experts_per_tok": 8,
    "norm_topk_prob": True,
}
"""The keys of experts, with the defaults of DeepSeek-V3."""
MAPPED = {"num_local_experts": "n_routed_experts"}
PUBLISHED: Mapping[str, Any] = {"scoring_func": "sigmoid", "topk_method": "noaux_tc", "moe_layer_freq": 1}
"""Keys of published files that say what the routers of DeepSeek-V3's kind compute, which transformers does not read."""
INDEXER: Mapping[str, Any] = {"index_topk": 2048, "index_head_dim": 128, "index_n_heads": 64}
"""The keys of an indexer, with the defaults of DeepSeek-V3.2."""
_EPSILON = 1e-6
"""Of the norms of latents, whatever `rms_norm_eps` says."""
_CHOSEN = "an indexer chooses which keys each token sees, and llmc does not compute it"


def latent(config: ConfigReader, *, interleaved: bool = True, rope: RopeConfig | None = None) -> Latent:
    """Latent attention; queries have a rank of their own if `q_lora_rank` is given.

    `rope` is by default that of a head of `qk_rope_head_dim` elements.
    """
    fields, hidden, heads, bias = config.fields, config.hidden_size, config.heads, config.flag("attention_bias")
    nope, rope_dim, value, rank = (
        fields.need_integer(key, 1, 2**16)
        for key in ("qk_nope_head_dim", "qk_rope_head_dim", "v_head_dim", "kv_lora_rank")
    )
    if rope_dim % 2:
        raise fields.refuse("qk_rope_head_dim", "an even number (rotary embedding turns pairs)")
    for key, known in (("qk_head_dim", (nope + rope_dim,)), ("head_dim", (rope_dim, nope + rope_dim))):
        if fields.has(key) and fields.values[key] not in known:
            raise fields.refuse(key, f"{' or '.join(map(str, known))}, as the other sizes say,")
    if config.kv_heads != heads:
        raise fields.refuse("num_key_value_heads", f"num_attention_heads ({heads}): latent attention has no groups,")
    given = fields.integer("q_lora_rank", 1, 2**16)
    queries, size = heads * (nope + rope_dim), given or hidden
    rope = replace(rope or config.rope(head_dim=rope_dim), size=0, interleaved=interleaved)
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
        kv_norm=_norm(config, "self_attn.kv_a_layernorm", rank),
        kv_up=Linear("self_attn.kv_b_proj", heads * (nope + value), rank, kept=True),
        o=Linear("self_attn.o_proj", hidden, heads * value, bias),
        q_down=Linear("self_attn.q_a_proj", given, hidden, bias) if given else None,
        q_norm=_norm(config, "self_attn.q_a_layernorm", given) if given else None,
    )


def _norm(config: ConfigReader, module: str, size: int) -> Norm:
    return replace(config.norm(module, size), epsilon=_EPSILON)


def _temperature(rope: RopeConfig) -> float:
    """What a scaled rope multiplies the scale of scores by: the square of the factor of mscale_all_dim."""
    all_dim, factor = rope.parameters.get("mscale_all_dim", 0), rope.parameters.get("factor", 1)
    assert isinstance(all_dim, int | float) and isinstance(factor, int | float)
    if rope.type == "default" or not all_dim or factor <= 1:
        return 1.0
    return (0.1 * all_dim * math.log(factor) + 1.0) ** 2


def sparse(config: ConfigReader, index: int, first: int) -> bool:
    """Whether a layer has experts: as `mlp_layer_types` says or, if that is absent, from layer `first` on."""
    fields = config.fields
    kinds = fields.values.get("mlp_layer_types")
    if kinds is None:
        return index >= first
    if not isinstance(kinds, list) or len(kinds) != config.layers or {*kinds} - {"dense", "sparse"}:
        raise fields.refuse("mlp_layer_types", f'a list of {config.layers} times "dense" or "sparse"')
    return kinds[index] == "sparse"


def mixture_or_dense(config: ConfigReader, index: int, first: int) -> Mlp:
    """DeepSeek-V3's experts where `sparse` says so."""
    if not sparse(config, index, first):
        return config.mlp()
    return with_shared(config, deepseek_router(config, count(config, "n_routed_experts")))


def deepseek_layer(config: ConfigReader, index: int) -> LayerSpec:
    """A layer of DeepSeek-V3's kind, in which rope turns neighbours."""
    first = config.fields.need_integer("first_k_dense_replace", 0, 2048)
    return config.layer(latent(config), mixture_or_dense(config, index, first))


def up_to_indexer(config: ConfigReader, spec: DecoderSpec) -> DecoderSpec:
    """The decoder for as many positions as an indexer chooses: as long as they are all, it changes nothing."""
    count = config.fields.need_integer("index_topk", 1, 2**31 - 1)
    spec = replace(spec, left_out=(("self_attn.indexer", f"with at most {count} positions an indexer chooses all"),))
    if count >= spec.positions:
        return spec
    config.notes.append(f"max_position_embeddings = {count}: beyond index_topk {_CHOSEN}")
    return replace(spec, positions=count, limit=f"beyond index_topk {_CHOSEN}")
