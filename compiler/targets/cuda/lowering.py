"""A legal graph as kernel calls, one function per operator, for one kind of step: what runs, over which tensors."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace

import onnx_ir as ir

from ....runtime.bind import Concat, Expr, Reshape, ToF32
from ....runtime.plan import BLOCK_TOKENS, Tensor
from ....runtime.step_inputs import INPUTS
from ... import ops
from ...graph import Graph, attribute, dims, width
from .kernel import Call, Operand
from .kernels import (
    attention_decode,
    attention_prefill,
    counts,
    embed,
    expand_fp8,
    gated,
    linear_fp8,
    linear_large,
    linear_small,
    norm,
    quantize_activations,
    rope_cache,
    tile_stats,
)
from .kernels import sample as sampling
from .kernels import tokens as token_kernels
from .kernels.tiles import COUNTERS, Tile, default_tile
from .tactics import Key, key

OPERAND_DTYPE = {"BF16": "bf16", "F16": "f16", "F32": "f32", "U8": "u8", "F8_E4M3": "u8", "F8_E8M0": "u8"}
BIASES = 32
"""Biased tokens of a request that the device adds; of more, the host does."""
SMALL_M = 64
"""Tokens up to which a linear is bound by its weights, and takes the swapped form."""


@dataclass(frozen=True)
class Shape:
    """A kind of step: see `runtime/plan.py`, Program."""

    decode: bool
    tokens: int
    sequences: int
    rows: int

    def limit(self, size: str) -> int:
        return {"tokens": self.tokens, "sequences": self.sequences, "rows": self.rows}[size]


@dataclass(frozen=True)
class Model:
    """What every program of a profile shares. kv: format of the cache. tiles: measured ones (`tactics.py`)."""

    graph: Graph
    sm: int
    activation: str
    max_context: int
    max_batch: int
    kv: str
    tiles: Mapping[Key, Tile] = field(default_factory=dict)

    @property
    def max_blocks(self) -> int:
        return -(-self.max_context // BLOCK_TOKENS)


@dataclass
class Lowering:
    """The calls of one program, as they are made; `shared` are the tensors all programs have in common."""

    model: Model
    shape: Shape
    shared: dict[str, Tensor]
    calls: list[tuple[str, Call]] = field(default_factory=list)
    buffers: dict[str, Operand] = field(default_factory=dict)
    quantized: dict[ir.Value, tuple[Operand, Operand]] = field(default_factory=dict)
    """Activations as E4M3 codes [tokens, K] and scales [tokens]."""
    _values: dict[ir.Value, Operand] = field(default_factory=dict)

    def run(self) -> Lowering:
        """Lower the whole graph and what follows it: a token per row."""
        i32 = "i32"
        self._call(
            "take tokens",
            token_kernels.take_tokens(
                self.input("token_ids", i32, "tokens"),
                self.state("last", i32, "lanes"),
                self.buffer("tokens", i32, "tokens"),
                lanes=self.model.max_batch,
            ),
        )
        for node in self.model.graph.nodes:
            LOWER[node.op_type](self, node)
        self._sample(self._values[self.model.graph.ir.outputs[0]])
        return self

    def operand(self, value: ir.Value | None) -> Operand:
        """The tensor behind a value: computed before, or a weight."""
        assert value is not None
        if value in self._values:
            return self._values[value]
        expr = self.model.graph.expr(value)
        assert expr is not None, f"{value.name} is neither computed nor a weight"
        stored = raw(expr)
        name = str(value.name)
        return self._share(name, "weight", Operand(name, OPERAND_DTYPE[stored.dtype], stored.shape))

    def result(self, value: ir.Value, dtype: str | None = None) -> Operand:
        """A new buffer for a value: activations unless said otherwise; logits are float32."""
        made = self.buffer(str(value.name), dtype or self.model.activation, self.rows_of(value), width(value))
        self._values[value] = made
        return made

    def computed(self, value: ir.Value) -> bool:
        """Whether a launch made before writes it."""
        return value in self._values

    def rows_of(self, value: ir.Value) -> str:
        """Which size a value's rows are: of all new tokens, or of the wanted ones."""
        return "tokens" if len(dims(value)) == 3 or self.shape.decode else "rows"

    def narrow(self, value: ir.Value) -> bool:
        """Whether the step is large enough for FP8 tensor cores."""
        return self.shape.limit(self.rows_of(value)) > SMALL_M

    def narrow_result(self, value: ir.Value) -> tuple[Operand, Operand]:
        """New buffers for activations as E4M3 codes and scales."""
        rows = self.rows_of(value)
        codes = self.buffer(f"{value.name}.codes", "u8", rows, width(value))
        scales = self.buffer(f"{value.name}.scales", "f32", rows)
        self.quantized[value] = codes, scales
        return codes, scales

    def buffer(self, name: str, dtype: str, *shape: int | str) -> Operand:
        operand = Operand(name, dtype, shape)
        self.buffers[name] = operand
        return operand

    def input(self, name: str, dtype: str, *shape: int | str) -> Operand:
        assert (dtype, shape[0]) == (INPUTS[name].dtype, INPUTS[name].size), f"input {name}: {dtype} {shape}"
        return self._share(name, "input", Operand(name, dtype, shape))

    def state(self, name: str, dtype: str, *shape: int | str) -> Operand:
        return self._share(name, "state", Operand(name, dtype, shape))

    def cache(self, value: ir.Value | None) -> Operand:
        """The paged form [blocks, K, 64, D] of a past key or value [B, K, C, D]."""
        assert value is not None
        _, heads, _, size = dims(value)
        shape = ("blocks", heads, BLOCK_TOKENS, size)
        name = str(value.name)
        dtype = "u8" if self.model.kv == "fp8" else self.model.activation
        return self._share(name, "cache", Operand(name, dtype, shape))

    def add(self, node: ir.Node, call: Call) -> None:
        """One launch, labelled by the module or operator it computes."""
        self._call(str(node.name), call)

    def alias(self, value: ir.Value, operand: Operand) -> None:
        self._values[value] = operand

    def _call(self, label: str, call: Call) -> None:
        self.calls.append((label, call))

    def _share(self, name: str, kind: str, operand: Operand) -> Operand:
        self.shared[name] = Tensor(kind, operand.dtype, tuple(map(str, operand.shape)))
        return operand

    def _remember_prompts(self, counts_of: Operand) -> None:
        """Which tokens the sequences of a step begin with; steps that only decode have no prompts."""
        ids, marks = self.input("token_ids", "i32", "tokens"), self.input("marks", "i32", "tokens")
        self._call("penalties", counts.forget_counts(self.input("forget", "i32", "sequences"), counts_of))
        self._call("penalties", counts.mark_prompt(ids, marks, counts_of))

    def _sample(self, logits: Operand) -> None:
        """A token per row, kept on the device for the next step and written out for the host."""
        vocab = logits.shape[-1]
        assert isinstance(vocab, int)
        counts_of = self.state("counts", "i32", "lanes", vocab)
        if not self.shape.decode:
            self._remember_prompts(counts_of)
        rows, edits = sampling.Rows.of(self.input), tile_stats.Edits.of(self.input, BIASES)
        edited = self.buffer("edited", "f32", "rows", vocab)
        tiles, chosen = tile_stats.TileMaxima.of(self.buffer, vocab), sampling.Chosen.of(self.buffer)
        self._call("sample", tile_stats.tile_stats(logits, edits, counts_of, edited, tiles))
        self._call("sample", sampling.choose(logits, edited, tiles, rows, chosen))
        last, lanes = self.state("last", "i32", "lanes"), self.input("lanes", "i32", "rows")
        kept = token_kernels.keep_tokens(chosen.sampled, lanes, rows.edits, last, counts_of, lanes=self.model.max_batch)
        self._call("keep tokens", kept)


def raw(expr: Expr) -> Expr:
    """The stored numbers of a weight as they are: kernels convert them when they read them."""
    if isinstance(expr, ToF32) and expr.factor == 1.0:
        return raw(expr.of)
    if isinstance(expr, Concat):
        return replace(expr, parts=tuple(map(raw, expr.parts)))
    return replace(expr, of=raw(expr.of)) if isinstance(expr, Reshape) else expr


def _embedding(at: Lowering, node: ir.Node) -> None:
    weights = tuple(map(at.operand, node.inputs[1:]))
    ids = at.buffers["tokens"]
    at.add(node, embed.embed(ids, weights, at.result(node.outputs[0]), format=_format(node)))


def _quantize_activations(at: Lowering, node: ir.Node) -> None:
    """Steps of few tokens are bound by their weights: those keep their activations, and are the more exact for it."""
    narrow = node.outputs[0]
    if narrow in at.quantized:  # by what computed them
        return
    x = at.operand(node.inputs[0])
    at.alias(narrow, x)
    if at.narrow(narrow):
        at.add(node, quantize_activations.quantize_activations(x, *at.narrow_result(narrow), block=None))


def _result_or_narrow(at: Lowering, value: ir.Value) -> tuple[Operand, Operand | None]:
    """Where a result goes, and its scales if it is only ever read as E4M3, and so written as that."""
    users = [user for user, _ in value.uses()]
    if len(users) == 1 and users[0].op_type == "QuantizeActivations" and at.narrow(value):
        codes, scales = at.narrow_result(users[0].outputs[0])
        at.alias(users[0].outputs[0], codes)
        return codes, scales
    return at.result(value), None


def _linear_fp8(at: Lowering, node: ir.Node, weights: tuple[Operand, ...], bias: Operand | None) -> None:
    """On FP8 tensor cores; weights of another format become E4M3 first."""
    assert node.inputs[0] is not None
    codes, scales = at.quantized[node.inputs[0]]
    y, sm, most = at.result(node.outputs[0]), at.model.sm, at.shape.limit(str(codes.shape[0]))
    tile = at.model.tiles.get(key("fp8", width(node.outputs[0]), width(node.inputs[0]), "fp8", most))
    if _format(node) != "fp8":
        shape = width(node.outputs[0]), width(node.inputs[0])
        wide = at.buffer(f"{y.name}.weight", "u8", *shape), at.buffer(f"{y.name}.weight_scale", "f32", shape[0])
        at.add(node, expand_fp8.expand_fp8(weights, *wide, format=_format(node)))
        weights = wide
    at.add(
        node,
        linear_fp8.linear_fp8(codes, scales, weights, y, block=None, max_tokens=most, sm=sm, bias=bias, tile=tile),
    )


def _through_activation(value: ir.Value) -> tuple[ir.Value, str | None]:
    """What a linear is to write: its result, or that of the activation which alone reads it, and which one this is."""
    users = [user for user, _ in value.uses()]
    if len(users) == 1 and users[0].op_type == "GatedActivation" and not value.is_graph_output():
        return users[0].outputs[0], _activation(users[0])
    return value, None


def _activation(node: ir.Node) -> str:
    return node.overload.removeprefix("merged_")


def _linear(at: Lowering, node: ir.Node) -> None:
    fmt, x = _format(node), at.operand(node.inputs[0])
    operands = tuple(map(at.operand, node.inputs[1:]))
    weights, bias = (operands[:-1], operands[-1]) if ops.has_bias(node) else (operands, None)
    if node.inputs[0] in at.quantized:
        _linear_fp8(at, node, weights, bias)
        return
    result, activation = _through_activation(node.outputs[0])
    y = at.result(result, "f32" if result.is_graph_output() else None)
    most, sm = at.shape.limit(str(x.shape[0])), at.model.sm
    n, k = width(node.outputs[0]), width(node.inputs[0])
    kind = "large" if most > SMALL_M else "small"
    tile = at.model.tiles.get(key(kind, n, k, fmt, most)) if weights[0].dtype != "f32" else None
    if kind == "large":
        at.add(
            node,
            linear_large.linear_large(
                *(x, weights, y), format=fmt, max_tokens=most, sm=sm, bias=bias, activation=activation, tile=tile
            ),
        )
        return
    sized = tile or default_tile("small", n, k, fmt, most, sm)
    splits = sized.splits
    workspace = counters = None
    if splits > 1:
        workspace = at.buffer(f"{y.name}.partial", "f32", splits, x.shape[0], n)
        needed = linear_small.counters_for(n, most, sized)
        assert needed <= COUNTERS, f"{node.name} needs {needed} counters"
        counters = at.state("counters", "i32", COUNTERS)
    at.add(
        node,
        linear_small.linear_small(
            *(x, weights, y),
            format=fmt,
            max_tokens=most,
            sm=sm,
            bias=bias,
            workspace=workspace,
            counters=counters,
            activation=activation,
            tile=tile,
        ),
    )


def _rms_norm(at: Lowering, node: ir.Node) -> None:
    x, weight = map(at.operand, node.inputs)
    y, scales = _result_or_narrow(at, node.outputs[0])
    at.add(node, norm.rms_norm(x, weight, y, epsilon=attribute(node, "epsilon", 1e-5), scales=scales))


def _add_rms_norm(at: Lowering, node: ir.Node) -> None:
    x, residual, weight = map(at.operand, node.inputs)
    (y, scales), total = _result_or_narrow(at, node.outputs[0]), at.result(node.outputs[1])
    epsilon = attribute(node, "epsilon", 1e-5)
    at.add(node, norm.add_rms_norm(x, residual, weight, y, total, epsilon=epsilon, scales=scales))


def _gated(at: Lowering, node: ir.Node) -> None:
    if at.computed(node.outputs[0]):  # in the epilogue of the linear
        return
    y, scales = _result_or_narrow(at, node.outputs[0])
    at.add(node, gated.gated(at.operand(node.inputs[0]), y, activation=_activation(node), scales=scales))


def _select_rows(at: Lowering, node: ir.Node) -> None:
    x = at.operand(node.inputs[0])
    if at.shape.decode:
        at.alias(node.outputs[0], x)  # every token is wanted, in order
        return
    at.add(node, norm.gather_rows(x, at.input("rows", "i32", "rows"), at.result(node.outputs[0])))


def _rope_attention(at: Lowering, node: ir.Node) -> None:
    heads, kv_heads, size = (attribute(node, name) for name in ("heads", "kv_heads", "head_dim"))
    qkv, cos, sin = map(at.operand, node.inputs[:3])
    key, value = at.cache(node.inputs[4]), at.cache(node.inputs[5])
    y = at.result(node.outputs[0])
    q = at.buffer(f"{y.name}.q", at.model.activation, "tokens", heads * size)
    at.add(
        node,
        rope_cache.rope_cache(
            *(qkv, at.input("positions", "i32", "tokens"), at.input("slots", "i32", "tokens"), cos, sin, q, key, value),
            heads=heads,
            kv_heads=kv_heads,
            head_dim=size,
            interleaved=bool(attribute(node, "interleaved", 0)),
        ),
    )
    tables = at.input("tables", "i32", "sequences", at.model.max_blocks)
    lengths = at.input("lengths", "i32", "sequences")
    common = {"heads": heads, "kv_heads": kv_heads, "head_dim": size, "scale": attribute(node, "scale")}
    if not at.shape.decode:
        starts = at.input("starts", "i32", "sequences + 1")
        at.add(
            node,
            attention_prefill.attention_prefill(q, key, value, tables, starts, lengths, y, sm=at.model.sm, **common),
        )
        return
    splits = attention_decode.splits_for(at.shape.sequences, kv_heads, at.model.max_blocks, at.model.sm)

    def room(name: str, dtype: str, *shape: int | str) -> Operand:
        return at.buffer(f"{y.name}.{name}", dtype, *shape)

    parts = attention_decode.parts_of(room, at.state("counters", "i32", COUNTERS), heads, size, splits)
    at.add(
        node,
        attention_decode.attention_decode(q, key, value, tables, lengths, y, splits=splits, parts=parts, **common),
    )


def _format(node: ir.Node) -> str:
    name = ops.format_of(node)
    return "dense" if name == ops.DENSE else name


LOWER: Mapping[str, Callable[[Lowering, ir.Node], None]] = {
    "Embedding": _embedding,
    "Linear": _linear,
    "QuantizeActivations": _quantize_activations,
    "RMSNormalization": _rms_norm,
    "AddRMSNorm": _add_rms_norm,
    "GatedActivation": _gated,
    "SelectRows": _select_rows,
    "RopeAttention": _rope_attention,
    "Positions": lambda at, node: None,  # an input of the step
}
