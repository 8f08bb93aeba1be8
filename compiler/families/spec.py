"""The records that describe a decoder, one per layer; the decoder and the cache layout read them.

Module names are those of the checkpoint, inside a layer relative to it. A new architectural option is a new field,
whose default is the value that all families had before. Smaller records are in `records.py` and `mlps.py`.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from math import prod

from ...runtime.engine_file.manifest import LayerCache
from ..config.rope import RopeConfig
from .mlps import Experts, GatedMlp, Mlp, PlainMlp, Router
from .records import LAYER, RMS, Linear, Norm, Parameter, Parts, Shapes, Spelling, Stack

__all__ = [
    "LAYER",
    "RMS",
    "Attention",
    "DecoderSpec",
    "Experts",
    "GatedMlp",
    "Latent",
    "LayerSpec",
    "Linear",
    "Mixer",
    "Mlp",
    "Norm",
    "Parameter",
    "PerLayerEmbedding",
    "PerLayerInput",
    "PlainMlp",
    "Router",
    "Shapes",
    "Spelling",
    "Stack",
    "Temperature",
    "cache_of",
]


@dataclass(frozen=True)
class Attention(Parts):
    """Softmax attention over cached keys and values; q and k are normed (optional) and rotated (optional)."""

    heads: int
    kv_heads: int
    head_dim: int
    scale: float
    rope: RopeConfig | None
    q: Linear
    k: Linear | None
    """None if `source` is given."""
    v: Linear | None
    """None if `source` is given, or the values are what `k` computes, before norm and rope."""
    o: Linear
    q_norm: Norm | None = None
    """Over each head, or over all of them together if its size says so."""
    k_norm: Norm | None = None
    v_norm: Norm | None = None
    """Over each head."""
    window: int | None = None
    """Positions that a token attends to, its own included; None means its own and all before it."""
    chunk: int | None = None
    """Instead of a window: a token attends to those before it in its own chunk of so many positions."""
    norm_after_rope: bool = False
    softcap: float | None = None
    """Scores become softcap * tanh(score / softcap)."""
    sinks: Parameter | None = None
    """A score for each head, f32 [heads], that takes part in the softmax and has no value."""
    temperature: Temperature | None = None
    source: int | None = None
    """The layer whose keys and values it attends to; None: its own."""


@dataclass(frozen=True)
class Latent(Parts):
    """Multi-head latent attention (arXiv 2405.04434): what is cached is one row of `rank` + `rope_dim` numbers."""

    heads: int
    nope_dim: int
    """Elements of a head of q and k that rope does not turn."""
    rope_dim: int
    value_dim: int
    rank: int
    scale: float
    rope: RopeConfig
    q: Linear
    """Of the hidden state, or of `q_down`'s result."""
    kv_down: Linear
    """`rank` rows of the latent, then `rope_dim` rows of the key that all heads share."""
    kv_norm: Norm
    kv_up: Linear
    """For each head `nope_dim` rows of keys, then `value_dim` rows of values."""
    o: Linear
    q_down: Linear | None = None
    q_norm: Norm | None = None
    """Of `q_down`'s result."""
    temperature: Temperature | None = None

    kv_heads = 1
    window = None
    chunk = None
    source = None
    softcap = None
    sinks = None

    @property
    def head_dim(self) -> int:
        """Numbers of a cached row."""
        return self.rank + self.rope_dim


Mixer = Attention | Latent


def cache_of(mixer: Mixer, kv_heads: int | None = None) -> LayerCache:
    """What a layer keeps of each position; `kv_heads` are those of a rank."""
    rank = mixer.rank if isinstance(mixer, Latent) else None
    return LayerCache(mixer.kv_heads if kv_heads is None else kv_heads, mixer.head_dim, mixer.window, rank)


@dataclass(frozen=True)
class Temperature:
    """A query at a position is multiplied by 1 + beta * ln(1 + floor((position + first) / original)) (Llama 4)."""

    beta: float
    original: int
    first: int = 0


@dataclass(frozen=True)
class PerLayerInput(Parts):
    """x + norm(projection(activation(gate(x)) * the layer's part of the per-layer embedding)) (Gemma 3n, Gemma 4)."""

    activation: str
    gate: Linear
    projection: Linear
    norm: Norm


@dataclass(frozen=True)
class LayerSpec(Parts):
    """x = x + scale * mixer_post(mixer(mixer_norm(x))); x = x + scale * mlp_post(mlp(mlp_norm(x))).

    A norm of None does nothing. If `parallel`, the MLP reads what the mixer reads, and both are added at once.
    """

    mixer_norm: Norm | None
    mixer: Mixer
    mlp_norm: Norm | None
    mlp: Mlp
    mixer_post: Norm | None = None
    mlp_post: Norm | None = None
    parallel: bool = False
    residual_scale: float = 1.0
    extra: PerLayerInput | None = None
    scalar: Parameter | None = None
    """A factor [1] of the layer's result."""


@dataclass(frozen=True)
class PerLayerEmbedding(Parts):
    """A second embedding of [layers * width] columns: (scale * table[ids] + norm(projection(x) * H^-0.5)) * 2^-0.5."""

    table: Parameter
    projection: Linear
    norm: Norm
    """Over the part of each layer."""
    scale: float


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
    embedding_scale: float = 1.0
    per_layer: PerLayerEmbedding | None = None
    head_bias: bool = False
    logits_scale: float = 1.0
    logits_softcap: float | None = None
    """Logits become softcap * tanh(logit / softcap)."""
    limit: str = ""
    """Why it is not computed for more positions, if the model was trained for more."""
    left_out: tuple[tuple[str, str], ...] = ()
    """Modules of layers that are not computed, and why that changes nothing."""
    renamed: tuple[tuple[str, str], ...] = ()
    """Parts of tensors' names, each with the part that other files have in its place."""
    drafts: int = 0
    """Layers after the last one, in files only, that draft tokens; llmc leaves them out."""

    def tensors(self) -> dict[str, tuple[int, ...]]:
        """Every tensor the decoder reads, with its shape."""
        shapes: dict[str, tuple[int, ...]] = {f"{self.embedding}.weight": (self.vocab_size, self.hidden_size)}
        if self.per_layer is not None:
            shapes.update(self.per_layer.tensors(""))
        for index, layer in enumerate(self.layers):
            shapes.update(layer.tensors(self.layer.format(index)))
        shapes.update(self.norm.tensors(""))
        if not self.tied:
            shapes[f"{self.head}.weight"] = (self.vocab_size, self.hidden_size)
        if self.head_bias:
            shapes[f"{self.head}.bias"] = (self.vocab_size,)
        return shapes

    def active_parameters(self) -> int | None:
        """Parameters that one token reads; None if it reads all, because no layer has experts."""
        left_out = 0
        for layer in self.layers:
            if isinstance(layer.mlp, Experts):
                experts, chosen = layer.mlp.gate_up.experts, layer.mlp.router.chosen
                sizes = (prod(shape) for stack in layer.stacks() for _, shape in stack.tensors(""))
                left_out += sum(size // experts * (experts - chosen) for size in sizes)
        return sum(map(prod, self.tensors().values())) - left_out if self.stacks() else None

    def fused(self) -> dict[str, tuple[str, int, int]]:
        """Tensor that lies within a larger one of the checkpoint: that one, this one's first row, the rows of all."""
        return {
            f"{prefix}{linear.module}.{end}": (f"{prefix}{linear.part[0]}.{end}", *linear.part[1:])
            for index, layer in enumerate(self.layers)
            for prefix in (self.layer.format(index),)
            for linear in layer.linears()
            if linear.part is not None
            for end in (("weight", "bias") if linear.bias else ("weight",))
        }

    def stacks(self) -> dict[str, Stack]:
        """The linears of experts by module."""
        return {
            f"{self.layer.format(index)}{stack.module}": stack
            for index, layer in enumerate(self.layers)
            for stack in layer.stacks()
        }

    def linears(self) -> dict[str, tuple[int, int]]:
        """Rows and columns of every linear that a recipe may quantize, by its module; a tied head is one too.

        The linears of a layer's experts are one, of the size of each.
        """
        tables = {f"{self.embedding}.weight", self.per_layer.table.name if self.per_layer else ""}
        kept = {
            f"{self.layer.format(index)}{one.module}.weight"
            for index, layer in enumerate(self.layers)
            for one in layer.linears()
            if one.kept
        }
        matrices = {
            name.removesuffix(".weight"): shape
            for name, shape in self.tensors().items()
            if len(shape) == 2 and name.endswith(".weight") and name not in tables | kept
        }
        matrices |= {module: (stack.rows, stack.columns) for module, stack in self.stacks().items()}
        head = self.head, (self.vocab_size, self.hidden_size)
        return {name: (shape[0], shape[1]) for name, shape in (*matrices.items(), head)}

    def within(self, context: int) -> DecoderSpec:
        """The same decoder for at most `context` positions; removes windows and chunks that hold all of them."""
        return replace(self, layers=tuple(_within(layer, context) for layer in self.layers))


def _within(layer: LayerSpec, context: int) -> LayerSpec:
    if isinstance(layer.mixer, Latent):
        return layer
    window, chunk = (
        None if size is None or size >= context else size for size in (layer.mixer.window, layer.mixer.chunk)
    )
    return replace(layer, mixer=replace(layer.mixer, window=window, chunk=chunk))
