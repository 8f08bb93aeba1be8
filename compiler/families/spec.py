"""The records that describe a decoder, one per layer; the decoder and the cache layout read them.

Module names are those of the checkpoint, inside a layer relative to it. A new architectural option is a new field,
whose default is the value that all families had before.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

from ..config.rope import RopeConfig

Shapes = Iterator[tuple[str, tuple[int, ...]]]
"""Tensor names and shapes."""


@dataclass(frozen=True)
class Linear:
    """A module that computes x Wᵀ (+ bias); the weight W is [rows, columns], the bias [rows]."""

    module: str
    rows: int
    columns: int
    bias: bool = False

    def tensors(self, prefix: str) -> Shapes:
        yield f"{prefix}{self.module}.weight", (self.rows, self.columns)
        if self.bias:
            yield f"{prefix}{self.module}.bias", (self.rows,)


@dataclass(frozen=True)
class Norm:
    """An RMSNorm over the last `size` elements."""

    module: str
    size: int
    epsilon: float

    def tensors(self, prefix: str) -> Shapes:
        yield f"{prefix}{self.module}.weight", (self.size,)


class _Parts:
    """A record with the tensors of its fields, in their order."""

    def tensors(self, prefix: str) -> Shapes:
        for part in vars(self).values():
            if isinstance(part, Linear | Norm | _Parts):
                yield from part.tensors(prefix)


@dataclass(frozen=True)
class Attention(_Parts):
    """Softmax attention over cached keys and values; q and k are normed by heads (optional), then rotated."""

    heads: int
    kv_heads: int
    head_dim: int
    scale: float
    rope: RopeConfig
    q: Linear
    k: Linear
    v: Linear
    o: Linear
    q_norm: Norm | None = None
    k_norm: Norm | None = None
    window: int | None = None
    """Positions that a token attends to, its own included; None means its own and all before it."""


@dataclass(frozen=True)
class GatedMlp(_Parts):
    """down(activation(gate(x)) * up(x))."""

    activation: str
    gate: Linear
    up: Linear
    down: Linear


@dataclass(frozen=True)
class LayerSpec(_Parts):
    """x = x + mixer(mixer_norm(x)); x = x + mlp(mlp_norm(x))."""

    mixer_norm: Norm
    mixer: Attention
    mlp_norm: Norm
    mlp: GatedMlp


@dataclass(frozen=True)
class DecoderSpec:
    """Embedding, layers, norm, head."""

    vocab_size: int
    hidden_size: int
    positions: int
    """Positions that the model was trained for."""
    layers: tuple[LayerSpec, ...]
    norm: Norm
    tied: bool
    embedding: str = "model.embed_tokens"
    layer: str = "model.layers.{}."
    head: str = "lm_head"

    def tensors(self) -> dict[str, tuple[int, ...]]:
        """Every tensor the decoder reads, with its shape."""
        shapes: dict[str, tuple[int, ...]] = {f"{self.embedding}.weight": (self.vocab_size, self.hidden_size)}
        for index, layer in enumerate(self.layers):
            shapes.update(layer.tensors(self.layer.format(index)))
        shapes.update(self.norm.tensors(""))
        if not self.tied:
            shapes[f"{self.head}.weight"] = (self.vocab_size, self.hidden_size)
        return shapes

    def linears(self) -> dict[str, tuple[int, int]]:
        """Rows and columns of every linear by its module; a tied head is one too."""
        matrices = {name.removesuffix(".weight"): shape for name, shape in self.tensors().items() if len(shape) == 2}
        head = self.head, matrices.pop(self.embedding)
        return {name: (shape[0], shape[1]) for name, shape in (*matrices.items(), head)}

    def within(self, context: int) -> DecoderSpec:
        """The same decoder for at most `context` positions; removes windows that hold all of them."""
        return replace(self, layers=tuple(_within(layer, context) for layer in self.layers))


def _within(layer: LayerSpec, context: int) -> LayerSpec:
    window = layer.mixer.window
    if window is None or window < context:
        return layer
    return replace(layer, mixer=replace(layer.mixer, window=None))
