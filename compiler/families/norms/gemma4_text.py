"""Gemma 4: larger heads in layers that see all, values that may be keys, shared caches, experts beside the MLP."""

from __future__ import annotations

from dataclasses import replace

from ....runtime.dtypes import SOFTMAX
from ....runtime.errors import CheckpointError, Unsupported
from ...config.fields import Fields
from ...config.rope import RopeDefaults
from ..experts import router, stacks
from ..reading import ConfigReader, Family
from ..spec import (
    Attention,
    DecoderSpec,
    Experts,
    GatedMlp,
    LayerSpec,
    Linear,
    Norm,
    Parameter,
    PerLayerEmbedding,
    PerLayerInput,
)
from .gemma2 import FAMILY as GEMMA2
from .gemma2 import capped


def _kinds(config: ConfigReader) -> list[str]:
    """The kinds of all layers; the last one sees all, whatever the config says."""
    return [*(config.kind(index, 6) for index in range(config.layers - 1)), "full_attention"]


def _own(config: ConfigReader, index: int, full: bool) -> dict[str, int]:
    """Head size and key and value heads where a layer's differ: by its number, or for all layers that see all."""
    fields = config.fields
    if (listed := fields.table("per_layer_config")) is not None:  # of ten layers and more, "05" is the key of the sixth
        layers, keys = Fields(listed, f'"per_layer_config" of {fields.what}'), ("head_dim", "num_key_value_heads")
        entry = next((key for key in listed if key.isdecimal() and int(key) == index), "")
        own = Fields(layers.table(entry) or {}, f'"{entry}" of {layers.what}')
        if strange := [key for key in own.values if key not in keys]:
            raise own.refuse(strange[0], f"one of {', '.join(keys)}, which a layer may have of its own,")
        found = {key: value for key in keys if (value := own.integer(key, 1, 4096)) is not None}
    else:
        kv_heads = fields.integer("num_global_key_value_heads", 1, 4096) if config.flag("attention_k_eq_v") else None
        found = {"head_dim": fields.need_integer("global_head_dim", 2, 4096)} if full else {}
        found |= {"num_key_value_heads": kv_heads} if full and kv_heads else {}
    if config.heads % found.get("num_key_value_heads", 1):
        raise CheckpointError(
            f"expected key and value heads of layer {index} that divide num_attention_heads in {fields.what}",
            found=f"{found['num_key_value_heads']} and {config.heads}",
        )
    return found


def _mixer(config: ConfigReader, index: int, kinds: list[str]) -> Attention:
    full, bias = kinds[index] == "full_attention", config.flag("attention_bias")
    own, shared = _own(config, index, full), config.layers - config.fields.need_integer("num_kv_shared_layers", 0, 4096)
    size = own.get("head_dim", config.head_dim)
    rope = RopeDefaults(1e6, 0.25, "proportional") if full else RopeDefaults(nested="sliding_attention")
    window = None if full else config.fields.need_integer("sliding_window", 1, 2**31 - 1)
    mixer = config.attention(
        bias=bias,
        output_bias=bias,
        norms=True,
        window=window,
        rope=config.rope(rope, size),
        head_dim=size,
        kv_heads=own.get("num_key_value_heads", 0),
    )
    v = None if full and config.flag("attention_k_eq_v") else mixer.v
    mixer = replace(mixer, scale=1.0, v=v, v_norm=Norm("", size, config.norm("").epsilon))
    if index < shared:
        return mixer
    sources = [one for one in range(shared) if kinds[one] == kinds[index]]
    if not sources:
        raise config.fields.refuse("num_kv_shared_layers", f"so few that a {kinds[index]} layer comes before them")
    return replace(mixer, k=None, v=None, k_norm=None, v_norm=None, source=sources[-1])


def _mixture(config: ConfigReader, mlp: GatedMlp) -> Experts:
    """Experts beside the dense MLP; both and the router read the residual stream, each through a norm of its own."""
    fields, hidden = config.fields, config.hidden_size
    experts = fields.need_integer("num_experts", 1, 4096)
    before, after = "pre_feedforward_layernorm", "post_feedforward_layernorm"
    chooses = replace(
        router(config, SOFTMAX, experts, "top_k_experts", module="router.proj", normed=True),
        norm=replace(config.norm("router"), parameter="scale", factor=hidden**-0.5),
        scales=Parameter("router.per_expert_scale", (experts,)),
    )
    width = fields.need_integer("moe_intermediate_size", 1, 2**20)
    return Experts(
        chooses,
        *stacks(config, "experts", experts, width),
        mlp.activation,
        shared=mlp,
        norm=config.norm(f"{before}_2"),
        post=config.norm(f"{after}_2"),
        shared_norm=config.norm(before),
        shared_post=config.norm(f"{after}_1"),
    )


def _layer(config: ConfigReader, index: int) -> LayerSpec:
    kinds, hidden = _kinds(config), config.hidden_size
    mixer, activation = _mixer(config, index, kinds), config.activation("hidden_activation")
    wide = mixer.source is not None and config.flag("use_double_wide_mlp")
    names = ("input", "pre_feedforward", "post_attention", "post_feedforward")
    before, inner, after, last = (config.norm(f"{name}_layernorm") for name in names)
    mlp, size = config.mlp(activation=activation, width=config.width * (1 + wide)), _extra_size(config)
    extra = PerLayerInput(
        activation,
        Linear("per_layer_input_gate", size, hidden),
        Linear("per_layer_projection", hidden, size),
        config.norm("post_per_layer_input_norm"),
    )
    scalar = Parameter("layer_scalar", (1,))
    layer = LayerSpec(before, mixer, inner, mlp, after, last, extra=extra if size else None, scalar=scalar)
    return replace(layer, mlp_norm=None, mlp=_mixture(config, mlp)) if config.flag("enable_moe_block") else layer


def _extra_size(config: ConfigReader) -> int:
    return config.fields.integer("hidden_size_per_layer_input", 0, 2**18, 0)


def _decoder(config: ConfigReader, spec: DecoderSpec) -> DecoderSpec:
    if config.fields.values.get("use_bidirectional_attention") not in (None, "vision"):  # of images, that is
        asked = f'expected "use_bidirectional_attention" as null or "vision" in {config.fields.what}'
        raise Unsupported(asked, found="attention to later tokens")
    spec, size = capped(config, spec), _extra_size(config)
    if not size:
        return spec
    rows, columns = config.fields.need_integer("vocab_size_per_layer_input", 1, 2**24), len(spec.layers) * size
    if rows < spec.vocab_size:
        raise config.fields.refuse("vocab_size_per_layer_input", f"at least vocab_size ({spec.vocab_size})")
    per_layer = PerLayerEmbedding(
        Parameter("model.embed_tokens_per_layer.weight", (rows, columns)),
        Linear("model.per_layer_model_projection", columns, spec.hidden_size),
        config.norm("model.per_layer_projection_norm", size),
        size**0.5,
    )
    return replace(spec, per_layer=per_layer)


FAMILY = Family(
    "gemma4_text",
    "Gemma4ForCausalLM",
    _layer,
    defaults={
        **{key: value for key, value in GEMMA2.defaults.items() if "softcapping" not in key and "scalar" not in key},
        "max_position_embeddings": 131072,
        "sliding_window": 512,
        "final_logit_softcapping": None,
        "use_bidirectional_attention": None,
        "vocab_size_per_layer_input": 262144,
        "hidden_size_per_layer_input": 256,
        "attention_k_eq_v": None,
        "num_kv_shared_layers": 0,
        "use_double_wide_mlp": None,
        "enable_moe_block": None,
        "num_experts": None,
        "top_k_experts": None,
        "moe_intermediate_size": None,
        "global_head_dim": 512,
        "num_global_key_value_heads": None,
        "per_layer_config": None,
    },
    decoder=_decoder,
    example={
        "num_kv_shared_layers": 4,
        "use_double_wide_mlp": True,
        "attention_k_eq_v": True,
        "num_global_key_value_heads": 1,
        "final_logit_softcapping": 30.0,
    },
)
