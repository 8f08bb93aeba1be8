"""The one decoder: reads a `Family` table and a configuration, and builds the logical graph out of big operators."""

from __future__ import annotations

from dataclasses import dataclass

import onnx_ir as ir

from ...passes.graph.graph import Builder, Canonical, Computed, Copied, Graph
from ...passes.graph.ops import ACTIVATIONS, DENSE, overload_of
from ...runtime.engine_file.bind import Expr, ToF32
from ...runtime.errors import Unsupported, nearest
from ..checkpoint.checkpoint import Checkpoint
from .family import Family, Names, account, parameters
from .rope import rope_tables


@dataclass(frozen=True)
class Decoder:
    """The logical graph and what was found on the way to it."""

    graph: Graph
    unused: dict[str, str]


def build(family: Family, checkpoint: Checkpoint, max_context: int) -> Decoder:
    """The logical graph of a checkpoint: fp32, dense weights as promises, one cache of capacity C.

    Inputs `input_ids [B,S]`, `past_lengths [B]`, `logits_indices [R]`, `past.{l}.key/value [B,K,C,D]`; outputs
    `logits [R,V]`, `present.{l}.key/value`.

    Raises:
        CheckpointError: tensors missing, left over, or of another shape; all of them are named.
        Unsupported: an activation the graph has no operator for.
    """
    shapes = parameters(family, checkpoint.config)
    unused = account(family, checkpoint)
    graph = Graph.new(family.name)
    _Assembly(family.names, checkpoint, shapes, graph, max_context).assemble()
    return Decoder(graph, unused)


@dataclass(frozen=True)
class _Assembly:
    names: Names
    checkpoint: Checkpoint
    shapes: dict[str, tuple[int, ...]]
    graph: Graph
    max_context: int

    def assemble(self) -> None:
        c, n, g = self.checkpoint.config, self.names, self.graph
        if c.hidden_act not in ACTIVATIONS:
            raise Unsupported(
                f"hidden_act {c.hidden_act!r}{nearest(c.hidden_act, ACTIVATIONS)}", fix=", ".join(ACTIVATIONS)
            )
        ids = g.input("input_ids", "I64", ["B", "S"])
        past = g.input("past_lengths", "I32", ["B"])
        rows = g.input("logits_indices", "I64", ["R"])
        embed = g.build("embed")
        cos, sin = self._rope()
        positions = embed.llmc("Positions", ids, past)
        x = embed.llmc("Embedding", ids, self._parameter(f"{n.embedding}.weight"), overload=DENSE)
        for layer in range(c.num_hidden_layers):
            x = self._layer(layer, x, past, (cos, sin, positions))
        head = g.build("head")
        x = self._norm(head, x, n.final_norm)
        tied = n.embedding if c.tie_word_embeddings else n.head
        x = self._linear(head, x, tied, biased=False, name=n.head)
        logits = head.llmc("SelectRows", x, rows)
        logits.name = "logits"
        g.ir.outputs.insert(0, logits)

    def _layer(self, layer: int, x: ir.Value, past: ir.Value, rope: tuple[ir.Value, ...]) -> ir.Value:
        c, n = self.checkpoint.config, self.names
        b = self.graph.build(f"layer.{layer}")
        prefix = n.layer.format(layer=layer)
        h = self._norm(b, x, f"{prefix}.{n.attention_norm}")
        q, k, v = (self._linear(b, h, f"{prefix}.{name}", c.attention_bias) for name in (n.q, n.k, n.v))
        h = self._attention(b, layer, q, k, v, past, rope)
        x = b("Add", x, self._linear(b, h, f"{prefix}.{n.o}", c.attention_bias))
        h = self._norm(b, x, f"{prefix}.{n.mlp_norm}")
        gate, up = (self._linear(b, h, f"{prefix}.{name}", c.mlp_bias) for name in (n.gate, n.up))
        op, attributes = ACTIVATIONS[c.hidden_act]
        h = b("Mul", b(op, gate, **attributes), up)
        return b("Add", x, self._linear(b, h, f"{prefix}.{n.down}", c.mlp_bias))

    def _attention(
        self, b: Builder, layer: int, q: ir.Value, k: ir.Value, v: ir.Value, past: ir.Value, rope: tuple[ir.Value, ...]
    ) -> ir.Value:
        c = self.checkpoint.config
        q = b("RotaryEmbedding", q, *rope, num_heads=c.num_attention_heads)
        k = b("RotaryEmbedding", k, *rope, num_heads=c.num_key_value_heads)
        cache = ["B", c.num_key_value_heads, "C", c.head_dim]
        past_key = self.graph.input(f"past.{layer}.key", "F32", cache)
        past_value = self.graph.input(f"past.{layer}.value", "F32", cache)
        y, key, value = b.llmc(
            "CachedAttention",
            *(q, k, v, past_key, past_value, past),
            outputs=3,
            heads=c.num_attention_heads,
            kv_heads=c.num_key_value_heads,
            head_dim=c.head_dim,
            scale=c.head_dim**-0.5,
        )
        key.name, value.name = f"present.{layer}.key", f"present.{layer}.value"
        self.graph.ir.outputs.extend([key, value])
        return y

    def _norm(self, b: Builder, x: ir.Value, module: str) -> ir.Value:
        weight = self._parameter(f"{module}.weight")
        return b("RMSNormalization", x, weight, axis=-1, epsilon=self.checkpoint.config.rms_norm_eps)

    def _linear(self, b: Builder, x: ir.Value, module: str, biased: bool, name: str = "") -> ir.Value:
        bias = self._parameter(f"{module}.bias") if biased else None
        return b.llmc(
            "Linear",
            *(x, self._parameter(f"{module}.weight"), bias),
            overload=overload_of(DENSE, bias=biased),
            name=name or module,
        )

    def _parameter(self, tensor: str) -> ir.Value:
        dtype = self.checkpoint.source.info(tensor).dtype
        canonical = Canonical(tensor, dtype, self.shapes[tensor], Copied(tensor), group=tensor)
        return self.graph.weight(tensor, dense(self.graph.store(canonical)))

    def _rope(self) -> tuple[ir.Value, ir.Value]:
        c = self.checkpoint.config
        tables = rope_tables(c.rope, c.head_dim, c.max_position_embeddings, self.max_context)
        values = []
        for name, data in zip(("rope.cos", "rope.sin"), tables, strict=True):
            how = f"rope type {c.rope.type}, context {self.max_context}"
            canonical = Canonical(name, "F32", data.shape, Computed(data, how), group=name)
            values.append(self.graph.weight(name, self.graph.store(canonical)))
        return values[0], values[1]


def dense(tensor: Expr) -> Expr:
    """A stored tensor as float32."""
    return tensor if tensor.dtype == "F32" else ToF32(tensor)
