"""Decoders that have all of what the records can say, by changes of a plain one, whatever family will bring it."""

from __future__ import annotations

from dataclasses import replace

from llmc.compiler.config.rope import RopeConfig
from llmc.compiler.families.spec import (
    LAYER,
    DecoderSpec,
    GatedMlp,
    LayerSpec,
    Linear,
    Norm,
    Parameter,
    PerLayerEmbedding,
    PerLayerInput,
    PlainMlp,
    Temperature,
)

EPSILON = 1e-5
SMALL = 32
"""Columns of a layer's part of a per-layer embedding."""


def _norm(name: str, size: int, **more: object) -> Norm:
    return replace(Norm(name, size, EPSILON), **more)


def attention(spec: DecoderSpec) -> DecoderSpec:
    """Seven layers: caps with sinks, a part of a head, tables of q, norms of each kind, no rope, keys as values, a
    cache of another layer, tables of q without rope."""
    layer = spec.layers[0]
    mixer = layer.mixer
    heads, kv_heads, size = mixer.heads, mixer.kv_heads, mixer.head_dim
    rope = mixer.rope or RopeConfig("default", 1e4, {})
    of_heads = {"q_norm": _norm("q_norm", size), "k_norm": _norm("k_norm", size, plus_one=False)}
    wide = {"q_norm": _norm("q_norm", heads * size), "k_norm": _norm("k_norm", kv_heads * size)}
    each = {"q_norm": _norm("q", size, kind=LAYER, each=heads), "k_norm": _norm("k", size, kind=LAYER, each=kv_heads)}
    part, turned = replace(rope, size=size // 2), replace(rope, interleaved=True)
    sinks = Parameter("self_attn.sinks", (heads,))
    mixers = (
        replace(mixer, softcap=5.0, window=20, rope=part, temperature=Temperature(0.5, 16), **of_heads),
        replace(mixer, sinks=sinks, rope=turned, norm_after_rope=True, **of_heads),
        replace(mixer, softcap=5.0, sinks=sinks, rope=None, **wide),
        replace(mixer, rope=replace(part, interleaved=True), **each),
        replace(mixer, v=None, v_norm=_norm("", size), **of_heads),
        replace(mixer, k=None, v=None, source=0, window=20, softcap=5.0, rope=part, q_norm=of_heads["q_norm"]),
        replace(mixer, rope=None, temperature=Temperature(0.5, 16, first=1)),
    )
    return replace(spec, layers=tuple(replace(layer, mixer=one) for one in mixers))


def tempered(spec: DecoderSpec) -> DecoderSpec:
    """Queries of latent attention times factors of their positions."""
    temperature = Temperature(0.5, 16)
    layers = (replace(layer, mixer=replace(layer.mixer, temperature=temperature)) for layer in spec.layers)
    return replace(spec, layers=tuple(layers))


def around(spec: DecoderSpec) -> DecoderSpec:
    """Two layers: LayerNorms and side by side; norms behind, factors, per-layer embeddings, capped logits."""
    layer, hidden = spec.layers[0], spec.hidden_size
    first, second = (_norm(name, hidden, kind=LAYER, bias=True) for name in ("first", "second"))
    extra = PerLayerInput(
        "gelu_pytorch_tanh", Linear("gate", SMALL, hidden), Linear("out", hidden, SMALL), _norm("extra", hidden)
    )
    behind = {"mixer_post": _norm("mixer_post", hidden, plus_one=True), "mlp_post": _norm("mlp_post", hidden)}
    layers = (
        replace(layer, mixer_norm=first, mlp_norm=None, parallel=True, extra=extra),
        replace(layer, mlp_norm=second, residual_scale=0.5, scalar=Parameter("factor", (1,)), extra=extra, **behind),
    )
    columns = len(layers) * SMALL
    table = Parameter("extra.weight", (spec.vocab_size, columns))
    per_layer = PerLayerEmbedding(table, Linear("projection", columns, hidden), _norm("extra_norm", SMALL), 4.0)
    return replace(
        spec,
        layers=layers,
        per_layer=per_layer,
        embedding_scale=8.0,
        logits_scale=0.5,
        logits_softcap=8.0,
        norm=_norm("model.norm", hidden, kind=LAYER),
    )


def activations(spec: DecoderSpec) -> DecoderSpec:
    """A layer for each activation, with a gate and without."""
    layer = spec.layers[0]
    assert isinstance(layer.mlp, GatedMlp)
    up, down = layer.mlp.up, layer.mlp.down
    xielu = tuple(Parameter(f"mlp.act_fn.{name}", (1,)) for name in ("alpha_p", "alpha_n", "beta", "eps"))
    plain = [PlainMlp(name, up, down) for name in ("silu", "gelu", "gelu_pytorch_tanh", "relu", "relu2")]
    gated = [replace(layer.mlp, activation=name) for name in ("gelu", "gelu_pytorch_tanh", "relu")]
    mlps = (*plain, PlainMlp("xielu", up, down, xielu), *gated)
    return replace(spec, layers=tuple[LayerSpec, ...](replace(layer, mlp=mlp) for mlp in mlps))
