"""The records that describe a decoder, one per layer; the decoder and the cache layout read them.

Module names are those of the checkpoint, inside a layer relative to it. A new architectural option is a new field,
whose default is the value that all families had before.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from math import prod

from ...runtime.engine_file.manifest import LayerCache
from ..config.rope import RopeConfig

Shapes = Iterator[tuple[str, tuple[int, ...]]]
"""Tensor names and shapes."""


@dataclass(frozen=True)
class Parameter:
    """A tensor of its own."""

    name: str
    shape: tuple[int, ...]

    def tensors(self, prefix: str) -> Shapes:
        yield f"{prefix}{self.name}", self.shape


@dataclass(frozen=True)
class Linear:
    """A module that computes x Wᵀ (+ bias); the weight W is [rows, columns], the bias [rows]."""

    module: str
    rows: int
    columns: int
    bias: bool = False
    part: tuple[str, int, int] | None = None
    """If the checkpoint stores it within a larger linear: that module, this one's first row, and the rows of all."""
    kept: bool = False
    """No recipe quantizes it: of few rows, it decides which experts compute."""

    def tensors(self, prefix: str) -> Shapes:
        yield f"{prefix}{self.module}.weight", (self.rows, self.columns)
        if self.bias:
            yield f"{prefix}{self.module}.bias", (self.rows,)


@dataclass(frozen=True)
class Norm:
    """A norm over the last `size` elements: by their root mean square, or of a LayerNorm (arXiv 1607.06450)."""

    module: str
    """ "" if it has no weight."""
    size: int
    epsilon: float
    kind: str = "rms"
    """RMS or LAYER."""
    plus_one: bool = False
    """The factor is 1 + weight."""
    bias: bool = False
    each: int = 0
    """Heads that have a weight of their own each, stored as `{module}.norms.{head}.weight`; 0: one weight for all."""
    parameter: str = "weight"
    """The weight's name in the module."""
    factor: float = 1.0
    """Of the weight."""

    def weights(self, prefix: str) -> list[str]:
        """Names of its weights."""
        if self.each:
            return [f"{prefix}{self.module}.norms.{head}.weight" for head in range(self.each)]
        return [f"{prefix}{self.module}.{self.parameter}"] if self.module else []

    def tensors(self, prefix: str) -> Shapes:
        yield from ((name, (self.size,)) for name in self.weights(prefix))
        if self.bias:
            yield f"{prefix}{self.module}.bias", (self.size,)


RMS, LAYER = "rms", "layer"


class _Parts:
    """A record with the tensors of its fields, in their order."""

    def tensors(self, prefix: str) -> Shapes:
        for part in self.parts():
            yield from part.tensors(prefix)

    def parts(self) -> Iterator[Parameter | Linear | Norm | Stack]:
        """The records of all tensors in it."""
        for value in vars(self).values():
            for part in value if isinstance(value, tuple) else (value,):
                if isinstance(part, _Parts):
                    yield from part.parts()
                elif isinstance(part, Parameter | Linear | Norm | Stack):
                    yield part

    def linears(self) -> tuple[Linear, ...]:
        return tuple(part for part in self.parts() if isinstance(part, Linear))

    def stacks(self) -> tuple[Stack, ...]:
        return tuple(part for part in self.parts() if isinstance(part, Stack))


@dataclass(frozen=True)
class Attention(_Parts):
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
class Latent(_Parts):
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
class GatedMlp(_Parts):
    """down(activation(gate(x)) * up(x))."""

    activation: str
    gate: Linear
    up: Linear
    down: Linear


@dataclass(frozen=True)
class PlainMlp(_Parts):
    """down(activation(up(x)))."""

    activation: str
    up: Linear
    down: Linear
    parameters: tuple[Parameter, ...] = ()
    """Of the activation, in its order."""


@dataclass(frozen=True)
class Spelling:
    """One way in which files store a weight of all experts.

    Either each expert has tensors of its own, whose names have `{}` for its number: one, or gate and up. Or one tensor
    is a stack of all, [E, out, in], or [E, in, out] if `turned`. Outputs of gate and up lie side by side, or take turns
    if `alternate`.
    """

    names: tuple[str, ...]
    turned: bool = False
    alternate: bool = False
    format: str = ""
    """The weight format that it is stored in: `names` are then stacks of the components, in the format's order."""
    biases: tuple[str, ...] = ()
    """The tensors of biases, in the same order."""

    @property
    def separate(self) -> bool:
        return "{}" in self.names[0]


@dataclass(frozen=True)
class Stack:
    """Linears of all experts: for each expert x Wᵀ (+ bias), with W of [rows, columns].

    It is one weight [E, rows, columns], called `{module}.weight`, and one bias [E, rows]. If `gated`, its rows take
    turns: one of gate, the same one of up. Files spell it in one of several ways.
    """

    module: str
    experts: int
    rows: int
    columns: int
    spellings: tuple[Spelling, ...]
    gated: bool = False
    bias: bool = False

    def tensors(self, prefix: str) -> Shapes:
        yield f"{prefix}{self.module}.weight", (self.experts, self.rows, self.columns)
        if self.bias:
            yield f"{prefix}{self.module}.bias", (self.experts, self.rows)


@dataclass(frozen=True)
class Router(_Parts):
    """Chooses the experts of a token, and their weights, from the logits of `linear`."""

    kind: str
    """A name of `runtime/experts.py`."""
    linear: Linear
    chosen: int
    normed: bool = False
    """The weights of a token are divided by their sum."""
    factor: float = 1.0
    """Of all weights."""
    least: float = 1e-20
    """No sum below this divides."""
    bias: Parameter | None = None
    """Added to the scores for the choice only."""
    norm: Norm | None = None
    """Of what `linear` reads."""
    scales: Parameter | None = None
    """A factor of each expert's weights."""
    groups: int = 1
    kept_groups: int = 1
    best: int = 2
    """A group's rank is the sum of so many of its highest scores."""
    jitter: float = 0.0
    """Of SPARSEMIXER."""


@dataclass(frozen=True)
class Experts(_Parts):
    """post(the sum of weight * down(activation(gate(n)) * up(n)) over a token's experts), plus a shared expert.

    n is norm(x); a norm of None does nothing. The router reads x.
    """

    router: Router
    gate_up: Stack
    down: Stack
    activation: str
    alpha: float = 1.0
    """Of the activation "limited" (`runtime/experts.py`), as is `limit`."""
    limit: float = 0.0
    scales_input: bool = False
    """The weight multiplies the input of an expert and not its result."""
    shared: GatedMlp | None = None
    """An MLP that every token has."""
    shared_gate: Linear | None = None
    """The result of `shared` is multiplied by the sigmoid of this linear of one row."""
    norm: Norm | None = None
    post: Norm | None = None
    shared_norm: Norm | None = None
    """Of what `shared` reads."""
    shared_post: Norm | None = None
    """Of its result."""

    @property
    def module(self) -> str:
        """The module of all experts."""
        return self.down.module.rpartition(".")[0]


Mlp = GatedMlp | PlainMlp | Experts


@dataclass(frozen=True)
class PerLayerInput(_Parts):
    """x + norm(projection(activation(gate(x)) * the layer's part of the per-layer embedding)) (Gemma 3n, Gemma 4)."""

    activation: str
    gate: Linear
    projection: Linear
    norm: Norm


@dataclass(frozen=True)
class LayerSpec(_Parts):
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
class PerLayerEmbedding(_Parts):
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
