"""What of a decoder no launch plan computes, in words: for the table of families, and for the refusal of a build."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from ...families.spec import LAYER, Attention, DecoderSpec, LayerSpec, Norm, PlainMlp

_OF_ATTENTION: Mapping[str, Callable[[Attention], object]] = {
    "caps of attention scores": lambda mixer: mixer.softcap is not None,
    "attention sinks": lambda mixer: mixer.sinks,
    "layers without rope": lambda mixer: mixer.rope is None,
    "rope of a part of a head": lambda mixer: mixer.rope and mixer.rope.rotated(mixer.head_dim) < mixer.head_dim,
    "queries scaled by their position": lambda mixer: mixer.temperature,
    "norms of heads after rope": lambda mixer: mixer.norm_after_rope,
    "norms of values": lambda mixer: mixer.v_norm,
    "norms of all heads together": lambda mixer: any(_wide(norm, mixer) for norm in (mixer.q_norm, mixer.k_norm)),
    "LayerNorms of heads": lambda mixer: any(norm and norm.kind == LAYER for norm in (mixer.q_norm, mixer.k_norm)),
    "a cache shared by layers": lambda mixer: mixer.source is not None,
    "values that are the keys": lambda mixer: mixer.source is None and mixer.v is None,
}
_OF_LAYER: Mapping[str, Callable[[LayerSpec], object]] = {
    "LayerNorm": lambda layer: any(norm and norm.kind == LAYER for norm in (layer.mixer_norm, layer.mlp_norm)),
    "attention and MLP side by side": lambda layer: layer.parallel,
    "an MLP without a gate": lambda layer: isinstance(layer.mlp, PlainMlp),
    "scaled residuals": lambda layer: layer.residual_scale != 1.0,
    "a factor of each layer": lambda layer: layer.scalar,
    "per-layer embeddings": lambda layer: layer.extra,
}
_OF_DECODER: Mapping[str, Callable[[DecoderSpec], object]] = {
    "scaled embeddings": lambda spec: spec.embedding_scale != 1.0,
    "scaled logits": lambda spec: spec.logits_scale != 1.0,
    "capped logits": lambda spec: spec.logits_softcap is not None,
}


def gaps(spec: DecoderSpec) -> tuple[str, ...]:
    """The features of a decoder that no launch plan computes; none if a build for sm_* takes it."""
    found = [words for words, has in _OF_DECODER.items() if has(spec)]
    found += [words for words, has in _OF_LAYER.items() if any(map(has, spec.layers))]
    mixers = [layer.mixer for layer in spec.layers]
    return (*found, *(words for words, has in _OF_ATTENTION.items() if any(map(has, mixers))))


def _wide(norm: Norm | None, mixer: Attention) -> bool:
    return norm is not None and norm.size != mixer.head_dim
