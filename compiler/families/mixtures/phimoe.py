"""Phi 3.5 MoE: two experts chosen one after the other (SparseMixer), LayerNorms, biases, and a LongRoPE of its own.

transformers 5.23 turns with `short_factor` at every length. The code beside the published files takes `long_factor`
beyond the original length: there both compute other numbers, and llmc computes those of transformers.
"""

from __future__ import annotations

from dataclasses import replace

from ....runtime.dtypes import SPARSEMIXER
from ....runtime.errors import Unsupported
from ...config.fields import Fields
from ...config.rope import RopeConfig, RopeDefaults
from ..experts import W1_W3_W2, mixture, router, stacks
from ..reading import ConfigReader, Family
from ..spec import LAYER, LayerSpec
from .mixtral import BLOCK, RENAMED

_FACTORS = ("short_mscale", "long_mscale")
"""Of cosines and sines of sequences up to the original length, and of longer ones."""


def _rope(config: ConfigReader) -> RopeConfig:
    fields, rope = config.fields, config.rope(RopeDefaults(1_000_000.0, keys=frozenset(_FACTORS)))
    if rope.type == "default":
        return rope
    if rope.type != "longrope":
        asked = f"expected a rope type of default, longrope in {fields.what}"
        raise Unsupported(asked, found=f"{rope.type!r} in a Phi 3.5 MoE")
    given = fields.table("rope_parameters") or fields.table("rope_scaling") or {}
    settings = Fields(given, f"the rope settings of {fields.what}")
    short, long = (settings.need_number(key, 0.0, 1e6, open_low=True) for key in _FACTORS)
    if short != long:
        asked = f'expected "long_mscale" as "short_mscale" ({short:g}) in {settings.what}'
        raise Unsupported(
            asked, found=f"{long:g}", fix="a checkpoint whose cached keys serve sequences of every length"
        )
    note = "rope: short_factor at every length, as transformers computes it"
    config.notes += [note] if note not in config.notes else []
    # one table for all lengths that the model has
    same = {"long_factor": rope.parameters["short_factor"], "original_max_position_embeddings": config.positions}
    return replace(rope, parameters={**rope.parameters, **same, "attention_factor": short})


def _layer(config: ConfigReader, index: int) -> LayerSpec:
    config.only({"num_experts_per_tok": 2})  # SparseMixer has no other number
    bias, experts = config.flag("attention_bias"), config.fields.need_integer("num_local_experts", 2, 4096)
    chooses = replace(
        router(config, SPARSEMIXER, experts, module=f"{BLOCK}.gate"),
        jitter=config.fields.need_number("router_jitter_noise", 0.0, 1e6),
    )
    mlp = mixture(config, chooses, stacks(config, f"{BLOCK}.experts", experts, config.width, separate=W1_W3_W2))
    window = config.integer("sliding_window", 1)
    mixer = config.attention(bias=bias, output_bias=bias, window=window, rope=_rope(config))
    first, second = (config.norm(f"{name}_layernorm", kind=LAYER, bias=True) for name in ("input", "post_attention"))
    return LayerSpec(first, mixer, second, mlp)


FAMILY = Family(
    "phimoe",
    "PhimoeForCausalLM",
    _layer,
    defaults={
        "max_position_embeddings": 4096 * 32,
        "num_key_value_heads": 8,
        "rms_norm_eps": 1e-5,
        "sliding_window": None,
        "attention_bias": None,
        "lm_head_bias": None,
        "num_experts_per_tok": 2,
        "num_local_experts": 16,
        "router_jitter_noise": 0.01,
        "bos_token_id": 1,
        "eos_token_id": 2,
    },
    decoder=lambda config, spec: replace(spec, head_bias=config.flag("lm_head_bias")),
    rope=RopeDefaults(1_000_000.0),
    also=("PhiMoEForCausalLM",),  # of the published files, beside remote code
    renamed=((f".{BLOCK}.gate.", ".mlp.router."), RENAMED),
    example={"num_local_experts": 4, "attention_bias": True, "lm_head_bias": True},
)
