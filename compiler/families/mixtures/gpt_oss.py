"""GPT-OSS: sinks, a window in each second layer, experts with biases and limits, stored in mxfp4 or in bf16."""

from __future__ import annotations

from dataclasses import replace

from ....runtime.dtypes import CHOSEN, LIMITED
from ...config.rope import RopeDefaults
from ..experts import router
from ..reading import ConfigReader, Family
from ..spec import Experts, LayerSpec, Linear, Parameter, Spelling, Stack

MXFP4 = "mxfp4"
_YARN = {
    "rope_type": "yarn",
    "factor": 32.0,
    "beta_fast": 32.0,
    "beta_slow": 1.0,
    "truncate": False,
    "original_max_position_embeddings": 4096,
}
"""The settings of a config that has none."""
_THETA = 150_000.0


def _stack(name: str, experts: int, rows: int, columns: int, *, gated: bool) -> Stack:
    """Linears `mlp.experts.{name}`: codes and scales as published, or [E, in, out] as transformers saves them."""
    module = f"mlp.experts.{name}"
    biases = (f"{module}_bias",)
    spellings = (
        Spelling((f"{module}_blocks", f"{module}_scales"), alternate=True, format=MXFP4, biases=biases),
        Spelling((module,), turned=True, alternate=True, biases=biases),
    )
    return Stack(module, experts, rows, columns, spellings, gated=gated, bias=True)


def _experts(config: ConfigReader) -> Experts:
    fields = config.fields
    count, hidden, width = fields.need_integer("num_local_experts", 1, 4096), config.hidden_size, config.width
    chooses = router(config, CHOSEN, count, module="mlp.router")
    return Experts(
        replace(chooses, linear=Linear("mlp.router", count, hidden, bias=True, kept=True)),
        _stack("gate_up_proj", count, 2 * width, hidden, gated=True),
        _stack("down_proj", count, hidden, width, gated=False),
        LIMITED,
        alpha=fields.need_number("swiglu_alpha", 0.0, 1e6, open_low=True),
        limit=fields.need_number("swiglu_limit", 0.0, 1e6, open_low=True),
    )


def _layer(config: ConfigReader, index: int) -> LayerSpec:
    given = config.fields.table("rope_parameters") or config.fields.table("rope_scaling")
    old = None if given else {"rope_scaling": _YARN, "rope_theta": config.fields.values.get("rope_theta")}
    windowed, bias = config.kind(index, 2) == "sliding_attention", config.flag("attention_bias")
    mixer = config.attention(
        bias=bias,
        output_bias=bias,
        rope=config.rope(RopeDefaults(_THETA, old=old)),
        window=config.fields.need_integer("sliding_window", 1, 2**31 - 1) if windowed else None,
    )
    mixer = replace(mixer, sinks=Parameter("self_attn.sinks", (config.heads,)))
    return config.layer(mixer, _experts(config))


FAMILY = Family(
    "gpt_oss",
    "GptOssForCausalLM",
    _layer,
    defaults={
        "max_position_embeddings": 131072,
        "rms_norm_eps": 1e-5,
        "head_dim": 64,
        "num_key_value_heads": 8,
        "tie_word_embeddings": False,
        "attention_bias": True,
        "sliding_window": 128,
        "num_local_experts": 128,
        "num_experts_per_tok": 4,
        "swiglu_alpha": 1.702,
        "swiglu_limit": 7.0,
    },
    fixed={"hidden_act": "silu", "initial_context_length": 4096},
    mapped={"num_experts": "num_local_experts"},
    spelled={"experts_per_token": "num_experts_per_tok"},
    stored=(MXFP4,),
    example={"num_local_experts": 4, "num_experts_per_tok": 2},
)
