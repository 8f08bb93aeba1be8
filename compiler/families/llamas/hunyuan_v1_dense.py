"""Hunyuan 0.5B to 7B: norms of heads after they turned; "dynamic" with an alpha is a larger theta at every length."""

from __future__ import annotations

from dataclasses import replace

from ....runtime.errors import Unsupported
from ...config.fields import Fields
from ...config.rope import RopeConfig, RopeDefaults
from ..reading import ConfigReader, Family
from ..spec import LayerSpec
from .llama import FAMILY as LLAMA


def _rope(config: ConfigReader, size: int) -> RopeConfig:
    fields = config.fields
    rope = config.rope(RopeDefaults(keys=frozenset({"alpha"})), size)
    settings = fields.table("rope_parameters") or fields.table("rope_scaling") or {}
    alpha = Fields(settings, f"the rope settings of {fields.what}").number("alpha", 0.0, 1e9, 0.0)
    if rope.type != "dynamic" or not alpha:
        return rope
    if size == 2:
        raise fields.refuse("head_dim", "a number over 2, as alpha has no value for it,")
    return replace(rope, type="default", theta=rope.theta * alpha ** (size / (size - 2)), parameters={})


def _layer(config: ConfigReader, index: int) -> LayerSpec:
    bias, size = config.flag("attention_bias"), config.fields.need_integer("head_dim", 2, 4096)
    if not config.fields.flag("use_qk_norm", True):  # transformers has the norms all the same
        raise Unsupported(f'expected "use_qk_norm" as true in {config.fields.what}', found="false")
    mixer = config.attention(bias=bias, output_bias=bias, rope=_rope(config, size))
    q, k = (config.norm(f"self_attn.{name}_layernorm", size) for name in ("query", "key"))
    return config.layer(replace(mixer, q_norm=q, k_norm=k, norm_after_rope=True), config.mlp())


_NORMS = {"rms_norm_eps": 1e-5, "use_qk_norm": None}
_DEFAULTS = {key: value for key, value in LLAMA.defaults.items() if key != "mlp_bias"} | _NORMS
FAMILY = Family(
    "hunyuan_v1_dense",
    "HunYuanDenseV1ForCausalLM",
    _layer,
    defaults=_DEFAULTS,
    fixed={"norm_type": "rms", "use_rotary_pos_emb": True},
    example={"head_dim": 128},
)
