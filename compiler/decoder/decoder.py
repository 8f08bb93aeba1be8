"""The one decoder: builds the logical graph of big operators from layer records."""

from __future__ import annotations

from dataclasses import dataclass, field

import onnx_ir as ir

from ...passes.graph.attention import WINDOWED
from ...passes.graph.graph import GATED, Builder, Canonical, Computed, Copied, Graph
from ...passes.graph.ops import ACTIVATIONS, DENSE, overload_of
from ...runtime.engine_file.rope import POSITIONS, LengthRope, table_inputs
from ..checkpoint.account import account
from ..checkpoint.checkpoint import Checkpoint
from ..checkpoint.weights.source import Source
from ..config.rope import RopeConfig
from ..families.spec import Attention, DecoderSpec, GatedMlp, LayerSpec, Linear, Norm
from .rope import length_rope, rope_tables


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


def build(checkpoint: Checkpoint, max_context: int) -> Decoder:
    """The logical graph of a checkpoint: fp32, dense weight expressions, one cache of capacity C per layer.

    Inputs: input_ids ``i64 [B, S]``, past_lengths ``i32 [B]``, logits_indices ``i64 [R]``, past.{l}.key and
    past.{l}.value ``f32 [B, K, C, D]``; if a rope depends on the sequence's length, rope_positions ``i64 [B, S]`` and
    its tables ``f32 [rows, D / 2]``. Outputs: logits ``f32 [R, V]``, present.{l}.key and present.{l}.value.

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
    assembly = _Assembly(spec, source, graph, max_context)
    assembly.assemble()
    return Decoder(graph, spec, tuple(assembly.by_length), unused)


@dataclass(frozen=True, eq=False)
class _Rope:
    """Settings and head size, their tables, and the rows of the tables that the tokens need."""

    settings: tuple[RopeConfig, int]
    cos: ir.Value
    sin: ir.Value
    rows: ir.Value


@dataclass(frozen=True)
class _Assembly:
    spec: DecoderSpec
    source: Source
    graph: Graph
    max_context: int
    ropes: list[_Rope] = field(default_factory=list)
    """Most models have one entry."""
    by_length: list[LengthRope] = field(default_factory=list)

    def assemble(self) -> None:
        spec, g = self.spec, self.graph
        ids = g.input("input_ids", "I64", ["B", "S"])
        past = g.input("past_lengths", "I32", ["B"])
        rows = g.input("logits_indices", "I64", ["R"])
        embed = g.build("embed")
        positions = embed.llmc("Positions", ids, past)
        for layer in spec.layers:
            self._rope(layer.mixer, positions)
        table = self._parameter(f"{spec.embedding}.weight", (spec.vocab_size, spec.hidden_size))
        x = embed.llmc("Embedding", ids, table, overload=DENSE)
        for index, layer in enumerate(spec.layers):
            x = self._layer(index, layer, x, past, positions)
        b = g.build("head")
        x = self._norm(b, x, spec.norm, "")
        head = Linear(spec.embedding if spec.tied else spec.head, spec.vocab_size, spec.hidden_size)
        logits = b.llmc("SelectRows", self._linear(b, x, head, "", name=spec.head), rows)
        logits.name = "logits"
        g.body.outputs.insert(0, logits)

    def _layer(self, index: int, layer: LayerSpec, x: ir.Value, past: ir.Value, positions: ir.Value) -> ir.Value:
        b, prefix = self.graph.build(f"layer.{index}"), self.spec.layer.format(index)
        h = self._norm(b, x, layer.mixer_norm, prefix)
        h = self._attention(b, index, layer.mixer, h, past, positions, prefix)
        x = b("Add", x, self._linear(b, h, layer.mixer.o, prefix))
        h = self._norm(b, x, layer.mlp_norm, prefix)
        return b("Add", x, self._mlp(b, layer.mlp, h, prefix))

    def _mlp(self, b: Builder, mlp: GatedMlp, x: ir.Value, prefix: str) -> ir.Value:
        gate, up = (self._linear(b, x, part, prefix, role=GATED) for part in (mlp.gate, mlp.up))
        op, attributes = ACTIVATIONS[mlp.activation]
        return self._linear(b, b("Mul", b(op, gate, **attributes), up), mlp.down, prefix)

    def _attention(
        self, b: Builder, index: int, mixer: Attention, x: ir.Value, past: ir.Value, positions: ir.Value, prefix: str
    ) -> ir.Value:
        q, k, v = (self._linear(b, x, part, prefix) for part in (mixer.q, mixer.k, mixer.v))
        rope = self._rope(mixer, positions)
        rotated = []
        for value, norm, heads in ((q, mixer.q_norm, mixer.heads), (k, mixer.k_norm, mixer.kv_heads)):
            if norm is not None:
                weight = self._parameter(f"{prefix}{norm.module}.weight", (norm.size,))
                value = b.llmc("HeadNorm", value, weight, epsilon=norm.epsilon)
            rotated.append(b("RotaryEmbedding", value, rope.cos, rope.sin, rope.rows, num_heads=heads))
        cache = ["B", mixer.kv_heads, "C", mixer.head_dim]
        past_key, past_value = (self.graph.input(f"past.{index}.{part}", "F32", cache) for part in ("key", "value"))
        windowed = {} if mixer.window is None else {"overload": WINDOWED, "window": mixer.window}
        y, key, value = b.llmc(
            "CachedAttention",
            *(*rotated, v, past_key, past_value, past),
            outputs=3,
            heads=mixer.heads,
            kv_heads=mixer.kv_heads,
            head_dim=mixer.head_dim,
            scale=mixer.scale,
            **windowed,
        )
        key.name, value.name = f"present.{index}.key", f"present.{index}.value"
        self.graph.body.outputs.extend([key, value])
        return y

    def _norm(self, b: Builder, x: ir.Value, norm: Norm, prefix: str) -> ir.Value:
        weight = self._parameter(f"{prefix}{norm.module}.weight", (norm.size,))
        return b("RMSNormalization", x, weight, axis=-1, epsilon=norm.epsilon)

    def _linear(self, b: Builder, x: ir.Value, linear: Linear, prefix: str, name: str = "", role: str = "") -> ir.Value:
        weights = [self._parameter(tensor, shape) for tensor, shape in linear.tensors(prefix)]
        overload = overload_of(DENSE, bias=linear.bias)
        return b.llmc("Linear", x, *weights, overload=overload, name=name or f"{prefix}{linear.module}", role=role)

    def _parameter(self, tensor: str, shape: tuple[int, ...]) -> ir.Value:
        dtype = self.source.info(tensor).dtype
        canonical = Canonical(tensor, dtype, shape, Copied(tensor), group=tensor)
        return self.graph.weight(tensor, self.graph.store(canonical))

    def _rope(self, mixer: Attention, positions: ir.Value) -> _Rope:
        """A layer's rope; layers with equal settings share it."""
        settings = (mixer.rope, mixer.head_dim)
        found = next((rope for rope in self.ropes if rope.settings == settings), None)
        if found is None:
            found = _Rope(settings, *self._tables(*settings, positions))
            self.ropes.append(found)
        return found

    def _tables(self, rope: RopeConfig, size: int, positions: ir.Value) -> tuple[ir.Value, ir.Value, ir.Value]:
        by_length = length_rope(rope, size, self.spec.positions, self.max_context)
        if by_length is not None:
            self.by_length.append(by_length)
            inputs = {str(value.name): value for value in self.graph.body.inputs}
            rows = inputs.get(POSITIONS) or self.graph.input(POSITIONS, "I64", ["B", "S"])
            names = table_inputs(len(self.by_length) - 1)
            cos, sin = (self.graph.input(name, "F32", ["P", size // 2]) for name in names)
            return cos, sin, rows
        tables = rope_tables(rope, size, self.spec.positions, self.max_context)
        number = f".{len(self.ropes)}" if self.ropes else ""
        values = []
        for name, data in zip((f"rope{number}.cos", f"rope{number}.sin"), tables, strict=True):
            how = f"rope type {rope.type}, context {self.max_context}"
            canonical = Canonical(name, "F32", data.shape, Computed(data, how), group=name)
            values.append(self.graph.weight(name, self.graph.store(canonical)))
        return values[0], values[1], positions
