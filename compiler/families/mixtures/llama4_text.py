"""Llama 4: top-1 experts whose input is weighted, attention in chunks where rope turns, hotter queries elsewhere."""

from __future__ import annotations

from dataclasses import replace

from ....runtime.dtypes import SIGMOID
from ...config.rope import RopeDefaults
from ..experts import mixture, router, shared
from ..reading import ConfigReader, Family
from ..spec import Attention, LayerSpec, Mlp, Norm, Spelling, Stack, Temperature


def _turned(config: ConfigReader, index: int) -> bool:
    """Whether a layer has rope: `no_rope_layers` says 1, or by default all but each fourth one have it."""
    fields, listed = config.fields, config.fields.values.get("no_rope_layers")
    if not listed:
        return (index + 1) % fields.need_integer("no_rope_layer_interval", 1, 4096) != 0
    if not isinstance(listed, list) or len(listed) < config.layers or any(one not in (0, 1) for one in listed):
        raise fields.refuse("no_rope_layers", f"a list of 0 or 1 for each of {config.layers} layers")
    return bool(listed[index])


def _sparse(config: ConfigReader, index: int) -> bool:
    """Whether a layer has experts: `moe_layers` names it, or by default the last of each `interleave_...` layers."""
    fields, listed = config.fields, config.fields.values.get("moe_layers")
    if listed is None:
        return (index + 1) % fields.need_integer("interleave_moe_layer_step", 1, 4096) == 0
    if not isinstance(listed, list) or any(type(one) is not int for one in listed):
        raise fields.refuse("moe_layers", "a list of numbers of layers")
    return index in listed


def _mixer(config: ConfigReader, index: int) -> Attention:
    fields, turned, bias = config.fields, _turned(config, index), config.flag("attention_bias")
    mixer, kinds = config.attention(bias=bias, output_bias=bias), config.kinds()
    chunk = fields.need_integer("attention_chunk_size", 1, 2**31 - 1)
    if turned if kinds is None else kinds[index] == "chunked_attention":
        mixer = replace(mixer, chunk=chunk)
    if not turned:
        beta, original = fields.need_number("attn_scale", 0.0, 1e6), fields.need_integer("floor_scale", 1, 2**31 - 1)
        temperature = Temperature(beta, original, first=1) if config.flag("attn_temperature_tuning") else None
        return replace(mixer, rope=None, temperature=temperature)
    if not config.flag("use_qk_norm"):
        return mixer
    norm = Norm("", config.head_dim, config.norm("").epsilon)
    return replace(mixer, q_norm=norm, k_norm=norm, norm_after_rope=True)


def _mlp(config: ConfigReader, index: int) -> Mlp:
    fields, hidden, width = config.fields, config.hidden_size, config.width
    if not _sparse(config, index):
        return shared(config, "feed_forward", fields.need_integer("intermediate_size_mlp", 1, 2**20))
    experts, module = fields.need_integer("num_local_experts", 1, 4096), "feed_forward.experts"
    both, down = f"{module}.gate_up_proj", f"{module}.down_proj"
    made = mixture(
        config,
        router(config, SIGMOID, experts, module="feed_forward.router"),
        (
            Stack(both, experts, 2 * width, hidden, (Spelling((both,), turned=True),), gated=True),
            Stack(down, experts, hidden, width, (Spelling((down,), turned=True),)),
        ),
        shared=shared(config, "feed_forward.shared_expert", width),
    )
    return replace(made, scales_input=True)


def _layer(config: ConfigReader, index: int) -> LayerSpec:
    return config.layer(_mixer(config, index), _mlp(config, index))


FAMILY = Family(
    "llama4_text",
    "Llama4ForCausalLM",
    _layer,
    defaults={
        "head_dim": 128,
        "num_key_value_heads": 8,
        "max_position_embeddings": 131072,
        "rms_norm_eps": 1e-5,
        "bos_token_id": 1,
        "eos_token_id": 2,
        "tie_word_embeddings": False,
        "attention_bias": False,
        "intermediate_size_mlp": 16384,
        "num_local_experts": 16,
        "num_experts_per_tok": 1,
        "moe_layers": None,
        "interleave_moe_layer_step": 1,
        "use_qk_norm": True,
        "no_rope_layers": None,
        "no_rope_layer_interval": 4,
        "attention_chunk_size": 8192,
        "attn_temperature_tuning": True,
        "floor_scale": 8192,
        "attn_scale": 0.1,
    },
    rope=RopeDefaults(500_000.0, interleaved=True),
    spelled={"num_experts": "num_local_experts"},
    example={"num_local_experts": 4, "interleave_moe_layer_step": 2},
)
