"""The one decoder: builds the logical graph of big operators from layer records."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import onnx_ir as ir

from ...passes.graph.attention import overload
from ...passes.graph.graph import GATED, Builder, Graph
from ...passes.graph.latent import TEMPERED
from ...passes.graph.ops import DENSE
from ...passes.graph.pointwise import ACTIVATIONS
from ...runtime.engine_file.rope import LengthRope
from ..checkpoint.account import account
from ..checkpoint.checkpoint import Checkpoint
from ..checkpoint.weights.source import Source
from ..checkpoint.weights.stacks import stored_formats
from ..families.spec import (
    Attention,
    DecoderSpec,
    Experts,
    Latent,
    LayerSpec,
    Linear,
    Mlp,
    Norm,
    PerLayerEmbedding,
    PerLayerInput,
    PlainMlp,
)
from .experts import experts_of
from .rotary import Ropes
from .weights import Weights


@dataclass(frozen=True)
class Decoder:
    """The logical graph of a checkpoint."""

    graph: Graph
    spec: DecoderSpec
    """The records at the context of the graph."""
    ropes: tuple[LengthRope, ...]
    """Those whose tables are inputs of the graph."""
    unused: dict[str, str]
    """Unused tensor of the checkpoint, to the reason."""
    stored: Mapping[str, str]
    """Modules of experts that the files have in a weight format already, to that format."""


def build(checkpoint: Checkpoint, max_context: int) -> Decoder:
    """The logical graph of a checkpoint: fp32, dense weight expressions, one cache of capacity C per layer.

    Inputs: input_ids ``i64 [B, S]``, past_lengths ``i32 [B]``, logits_indices ``i64 [R]``, past.{l}.key and
    past.{l}.value ``f32 [B, K, C, D]`` of layers with a cache of their own; if a rope depends on the sequence's length,
    rope_positions ``i64 [B, S]`` and its tables ``f32 [rows, D / 2]``. Outputs: logits ``f32 [R, V]``, present.{l}.key
    and present.{l}.value.

    Raises:
        CheckpointError: tensors are missing, left over or of another shape; names all of them.
        Unsupported: a rope type has no value for the head size or the trained length.
    """
    unused = account(checkpoint)
    return build_spec(checkpoint.config.decoder, checkpoint.source, max_context, unused, checkpoint.config.family.name)


def build_spec(spec: DecoderSpec, source: Source, max_context: int, unused: dict[str, str], family: str) -> Decoder:
    """`build` from records, without a checkpoint: `source` says the dtype of each tensor.

    Raises:
        Unsupported: a rope type has no value for the head size or the trained length.
    """
    spec, graph = spec.within(max_context), Graph.new(family)
    ids, past = graph.input("input_ids", "I64", ["B", "S"]), graph.input("past_lengths", "I32", ["B"])
    rows = graph.input("logits_indices", "I64", ["R"])
    ropes = Ropes(graph, graph.build("embed").llmc("Positions", ids, past), spec.positions, max_context)
    _Assembly(spec, graph, Weights(graph, source), ropes, past).assemble(ids, rows)
    return Decoder(graph, spec, tuple(ropes.by_length), unused, stored_formats(spec.stacks(), source.names))


@dataclass(frozen=True, eq=False)
class _Assembly:
    spec: DecoderSpec
    graph: Graph
    weights: Weights
    ropes: Ropes
    past: ir.Value
    """Tokens in each sequence's cache, i32 [B]."""
    present: dict[int, tuple[ir.Value, ir.Value]] = field(default_factory=dict)
    """Keys and values of a layer, with those of the new tokens."""

    def assemble(self, ids: ir.Value, rows: ir.Value) -> None:
        spec, g, w = self.spec, self.graph, self.weights
        embed = g.build("embed")
        for layer in spec.layers:
            self.ropes.of(layer.mixer)
        table = w.parameter(f"{spec.embedding}.weight", (spec.vocab_size, spec.hidden_size))
        x = _scaled(embed, embed.llmc("Embedding", ids, table, overload=DENSE), spec.embedding_scale)
        extra = self._per_layer(embed, ids, x, spec.per_layer) if spec.per_layer else None
        for index, layer in enumerate(spec.layers):
            x = self._layer(index, layer, x, extra)
        b = g.build("head")
        x = w.norm(b, x, spec.norm, "")
        head = Linear(spec.head, spec.vocab_size, spec.hidden_size, spec.head_bias)
        logits = w.linear(b, x, head, "", tensor=f"{spec.embedding}.weight" if spec.tied else "")
        logits = _scaled(b, logits, spec.logits_scale)
        if spec.logits_softcap is not None:
            logits = b.llmc("Softcap", logits, cap=spec.logits_softcap)
        logits = b.llmc("SelectRows", logits, rows)
        logits.name = "logits"
        g.body.outputs.insert(0, logits)

    def _per_layer(self, b: Builder, ids: ir.Value, x: ir.Value, extra: PerLayerEmbedding) -> ir.Value:
        """The parts of all layers side by side, f32 [B, S, layers * width]."""
        w = self.weights
        table = w.parameter(extra.table.name, extra.table.shape)
        own = _scaled(b, b.llmc("Embedding", ids, table, overload=DENSE), extra.scale)
        made = _scaled(b, w.linear(b, x, extra.projection, ""), self.spec.hidden_size**-0.5)
        return _scaled(b, b("Add", w.head_norm(b, made, extra.norm, "", extra.norm.size), own), 2.0**-0.5)

    def _layer(self, index: int, layer: LayerSpec, x: ir.Value, extra: ir.Value | None) -> ir.Value:
        w, b, prefix = self.weights, self.graph.build(f"layer.{index}"), self.spec.layer.format(index)

        def part(result: ir.Value, norm: Norm | None) -> ir.Value:
            return _scaled(b, w.norm(b, result, norm, prefix), layer.residual_scale)

        h = w.norm(b, x, layer.mixer_norm, prefix)
        if isinstance(layer.mixer, Latent):
            mixed = self._latent(b, index, layer.mixer, h, prefix)
        else:
            mixed = self._attention(b, index, layer.mixer, h, prefix)
        mixed = part(w.linear(b, mixed, layer.mixer.o, prefix), layer.mixer_post)
        if layer.parallel:
            x = b("Add", b("Add", x, mixed), part(self._mlp(b, layer.mlp, h, prefix), layer.mlp_post))
        else:
            x = b("Add", x, mixed)
            h = w.norm(b, x, layer.mlp_norm, prefix)
            x = b("Add", x, part(self._mlp(b, layer.mlp, h, prefix), layer.mlp_post))
        if layer.extra is not None and extra is not None:
            x = b("Add", x, self._extra(b, index, layer.extra, x, extra, prefix))
        if layer.scalar is not None:
            x = b("Mul", x, w.parameter(f"{prefix}{layer.scalar.name}", layer.scalar.shape))
        return x

    def _extra(self, b: Builder, index: int, own: PerLayerInput, x: ir.Value, extra: ir.Value, prefix: str) -> ir.Value:
        w, width = self.weights, own.gate.rows
        first, last, axis = (b.ints(value) for value in (index * width, (index + 1) * width, 2))
        part = b("Slice", extra, first, last, axis)
        part.type, part.shape = extra.type, ir.Shape(["B", "S", width])
        gate = w.linear(b, x, own.gate, prefix, role=GATED)
        op, attributes = ACTIVATIONS[own.activation]
        made = w.linear(b, b("Mul", b(op, gate, **attributes), part), own.projection, prefix)
        return w.norm(b, made, own.norm, prefix)

    def _mlp(self, b: Builder, mlp: Mlp, x: ir.Value, prefix: str) -> ir.Value:
        w = self.weights
        if isinstance(mlp, Experts):
            return experts_of(w, b, mlp, x, prefix, self._mlp)
        if isinstance(mlp, PlainMlp):
            parameters = [w.parameter(f"{prefix}{one.name}", one.shape) for one in mlp.parameters]
            h = b.llmc("Activation", w.linear(b, x, mlp.up, prefix), *parameters, overload=mlp.activation)
            return w.linear(b, h, mlp.down, prefix)
        gate, up = (w.linear(b, x, part, prefix, role=GATED) for part in (mlp.gate, mlp.up))
        op, attributes = ACTIVATIONS[mlp.activation]
        return w.linear(b, b("Mul", b(op, gate, **attributes), up), mlp.down, prefix)

    def _attention(self, b: Builder, index: int, mixer: Attention, x: ir.Value, prefix: str) -> ir.Value:
        w, g, size = self.weights, self.graph, mixer.head_dim
        q, k, v = (None if part is None else w.linear(b, x, part, prefix) for part in (mixer.q, mixer.k, mixer.v))
        v = w.head_norm(b, k if v is None else v, mixer.v_norm, prefix, size)
        rotated = []
        for value, norm, query in ((q, mixer.q_norm, True), (k, mixer.k_norm, False)):
            if not mixer.norm_after_rope:
                value = w.head_norm(b, value, norm, prefix, size)
            value = self.ropes.rotate(b, value, mixer, query=query)
            rotated.append(w.head_norm(b, value, norm, prefix, size) if mixer.norm_after_rope else value)
        common: dict[str, Any] = {
            "heads": mixer.heads,
            "kv_heads": mixer.kv_heads,
            "head_dim": mixer.head_dim,
            "scale": mixer.scale,
            "overload": overload(
                window=mixer.window, chunk=mixer.chunk, softcap=mixer.softcap, sinks=mixer.sinks is not None
            ),
        }
        optional = {"window": mixer.window, "chunk": mixer.chunk, "softcap": mixer.softcap}
        common |= {name: value for name, value in optional.items() if value is not None}
        sinks = () if mixer.sinks is None else (w.parameter(f"{prefix}{mixer.sinks.name}", mixer.sinks.shape),)
        if mixer.source is not None:
            return b.llmc("SharedAttention", rotated[0], *self.present[mixer.source], self.past, *sinks, **common)
        cache = ["B", mixer.kv_heads, "C", mixer.head_dim]
        caches = [g.input(f"past.{index}.{part}", "F32", cache) for part in ("key", "value")]
        y, key, value = b.llmc("CachedAttention", *rotated, v, *caches, self.past, *sinks, outputs=3, **common)
        key.name, value.name = f"present.{index}.key", f"present.{index}.value"
        g.body.outputs.extend([key, value])
        self.present[index] = key, value
        return y

    def _latent(self, b: Builder, index: int, mixer: Latent, x: ir.Value, prefix: str) -> ir.Value:
        w, q = self.weights, x
        if mixer.q_down is not None:
            q = w.norm(b, w.linear(b, x, mixer.q_down, prefix), mixer.q_norm, prefix)
        q = w.linear(b, q, mixer.q, prefix)
        both = w.linear(b, x, mixer.kv_down, prefix)
        latent, key = b("Split", both, b.ints(mixer.rank, mixer.rope_dim), axis=-1, outputs=2)
        for value, size in ((latent, mixer.rank), (key, mixer.rope_dim)):
            value.type, value.shape = x.type, ir.Shape(["B", "S", size])
        latent = w.norm(b, latent, mixer.kv_norm, prefix)
        up = w.parameter(f"{prefix}{mixer.kv_up.module}.weight", (mixer.kv_up.rows, mixer.kv_up.columns))
        cos, sin, rows, factors = self.ropes.tables(mixer)
        past = self.graph.input(f"past.{index}.key", "F32", ["B", 1, "C", mixer.head_dim])
        y, present = b.llmc(
            "LatentAttention",
            *(q, latent, key, up, cos, sin, rows, past, self.past, factors),
            overload=TEMPERED if factors is not None else "",
            outputs=2,
            heads=mixer.heads,
            nope=mixer.nope_dim,
            rope=mixer.rope_dim,
            value=mixer.value_dim,
            scale=mixer.scale,
            interleaved=int(mixer.rope.interleaved),
        )
        present.name = f"present.{index}.key"
        self.graph.body.outputs.append(present)
        return y


def _scaled(b: Builder, x: ir.Value, factor: float) -> ir.Value:
    return x if factor == 1.0 else b.llmc("Scale", x, factor=factor)
