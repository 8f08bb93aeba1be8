"""What a decoder has beyond that of Llama, in words, from its records."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from ...runtime.dtypes import CHOSEN, LIMITED, SIGMOID, SOFTMAX, SPARSEMIXER
from ..families.spec import LAYER, Attention, DecoderSpec, Experts, GatedMlp, Latent, LayerSpec, Norm, PlainMlp

_OF_DECODER: Mapping[str, Callable[[DecoderSpec], object]] = {
    "different head sizes": lambda spec: _differ(spec, "head_dim"),
    "different key and value heads": lambda spec: _differ(spec, "kv_heads"),
    "different rope by layer": lambda spec: len({str(one.mixer.rope) for one in spec.layers if one.mixer.rope}) > 1,
    "different MLP widths": lambda spec: (
        len({one.mlp.down.columns for one in spec.layers if not isinstance(one.mlp, Experts)}) > 1
    ),
    "layers without experts": lambda spec: len({isinstance(one.mlp, Experts) for one in spec.layers}) > 1,
    "per-layer embeddings": lambda spec: spec.per_layer,
    "scaled embeddings": lambda spec: spec.embedding_scale != 1.0,
    "scaled logits": lambda spec: spec.logits_scale != 1.0,
    "capped logits": lambda spec: spec.logits_softcap is not None,
    "bias of the head": lambda spec: spec.head_bias,
    "no more positions than an indexer chooses": lambda spec: spec.limit,
}
_OF_LAYER: Mapping[str, Callable[[LayerSpec], object]] = {
    "LayerNorm": lambda layer: any(norm.kind == LAYER for norm in _norms(layer)),
    "norms x (1 + w)": lambda layer: any(norm.plus_one for norm in _norms(layer)),
    "norms after sublayers": lambda layer: layer.mixer_post and not layer.mixer_norm,
    "norms before and after sublayers": lambda layer: layer.mixer_post and layer.mixer_norm,
    "attention and MLP side by side": lambda layer: layer.parallel,
    "scaled residuals": lambda layer: layer.residual_scale != 1.0,
    "a factor of each layer": lambda layer: layer.scalar,
    "MLP without a gate": lambda layer: isinstance(layer.mlp, PlainMlp),
    "fused gate and up": lambda layer: isinstance(mlp := _dense(layer), GatedMlp) and mlp.gate.part,
    "MLP biases": lambda layer: (mlp := _dense(layer)) and mlp.down.bias,
}
_OF_EXPERTS: Mapping[str, Callable[[Experts], object]] = {
    "experts weighted by a softmax": lambda mlp: mlp.router.kind == SOFTMAX,
    "experts weighted by sigmoids": lambda mlp: mlp.router.kind == SIGMOID,
    "experts weighted by a softmax of the chosen": lambda mlp: mlp.router.kind == CHOSEN,
    "experts chosen by SparseMixer": lambda mlp: mlp.router.kind == SPARSEMIXER,
    "weights of experts divided by their sum": lambda mlp: mlp.router.normed,
    "a factor of experts' weights": lambda mlp: mlp.router.factor != 1.0,
    "a bias that chooses experts": lambda mlp: mlp.router.bias,
    "groups of experts": lambda mlp: mlp.router.groups > 1,
    "bias of routers": lambda mlp: mlp.router.linear.bias,
    "biases of experts": lambda mlp: mlp.gate_up.bias,
    "gates of experts with limits": lambda mlp: mlp.activation == LIMITED,
    "experts whose input is scaled": lambda mlp: mlp.scales_input,
    "shared experts": lambda mlp: mlp.shared and not mlp.shared_gate,
    "shared experts with a gate": lambda mlp: mlp.shared_gate,
}
_OF_ATTENTION: Mapping[str, Callable[[Attention], object]] = {
    "biases of q, k and v": lambda mixer: mixer.q.bias,
    "bias of the output": lambda mixer: mixer.o.bias,
    "fused q, k and v": lambda mixer: mixer.q.part,
    "qk-norm of each head": lambda mixer: mixer.q_norm and mixer.q_norm.size == mixer.head_dim,
    "qk-norm of all heads together": lambda mixer: mixer.q_norm and mixer.q_norm.size != mixer.head_dim,
    "qk-norm after rope": lambda mixer: mixer.norm_after_rope,
    "norms of values": lambda mixer: mixer.v_norm,
    "windows": lambda mixer: mixer.window,
    "attention in chunks": lambda mixer: mixer.chunk,
    "layers without rope": lambda mixer: mixer.rope is None,
    "rope of a part of a head": lambda mixer: mixer.rope and _partial(mixer),
    "interleaved rope": lambda mixer: mixer.rope and mixer.rope.interleaved,
    "queries scaled by their position": lambda mixer: mixer.temperature,
    "own scale of scores": lambda mixer: mixer.scale != mixer.head_dim**-0.5,
    "capped scores": lambda mixer: mixer.softcap is not None,
    "attention sinks": lambda mixer: mixer.sinks,
    "values that are the keys": lambda mixer: mixer.source is None and mixer.v is None,
    "keys and values shared by layers": lambda mixer: mixer.source is not None,
}
_OF_LATENT: Mapping[str, Callable[[Latent], object]] = {
    "latent attention": lambda mixer: True,
    "queries of a low rank": lambda mixer: mixer.q_down,
    "biases of ranks": lambda mixer: mixer.kv_down.bias,
    "bias of the output": lambda mixer: mixer.o.bias,
    "interleaved rope": lambda mixer: mixer.rope.interleaved,
    "queries scaled by their position": lambda mixer: mixer.temperature,
    "own scale of scores": lambda mixer: mixer.scale != (mixer.nope_dim + mixer.rope_dim) ** -0.5,
}


def features(spec: DecoderSpec) -> tuple[str, ...]:
    """What some layer, or what is around the layers, has beyond Llama's."""
    found = [words for words, has in _OF_LAYER.items() if any(map(has, spec.layers))]
    mixers = [layer.mixer for layer in spec.layers]
    usual = [mixer for mixer in mixers if isinstance(mixer, Attention)]
    latent = [mixer for mixer in mixers if isinstance(mixer, Latent)]
    found += [words for words, has in _OF_ATTENTION.items() if any(map(has, usual))]
    found += [words for words, has in _OF_LATENT.items() if any(map(has, latent))]
    mixtures = [layer.mlp for layer in spec.layers if isinstance(layer.mlp, Experts)]
    found += [words for words, has in _OF_EXPERTS.items() if any(map(has, mixtures))]
    found += sorted(
        {f"{layer.mlp.activation} in the MLP" for layer in spec.layers if layer.mlp.activation not in _SAID}
    )
    return (*found, *(words for words, has in _OF_DECODER.items() if has(spec)))


_SAID = ("silu", LIMITED)
"""Activations that are Llama's, or have words of their own."""


def _dense(layer: LayerSpec) -> GatedMlp | PlainMlp | None:
    """The MLP that every token has: of a mixture its shared expert, if there is one."""
    return layer.mlp.shared if isinstance(layer.mlp, Experts) else layer.mlp


def _norms(layer: LayerSpec) -> list[Norm]:
    norms = (layer.mixer_norm, layer.mixer_post, layer.mlp_norm, layer.mlp_post)
    return [norm for norm in norms if norm is not None]


def _differ(spec: DecoderSpec, name: str) -> bool:
    return len({getattr(layer.mixer, name) for layer in spec.layers}) > 1


def _partial(mixer: Attention) -> bool:
    rope = mixer.rope
    return rope is not None and (rope.rotated(mixer.head_dim) < mixer.head_dim or rope.parameters.get("share", 1) != 1)
