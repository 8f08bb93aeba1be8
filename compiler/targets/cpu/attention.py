"""Cached attention to ONNX Runtime's CPU kernels: GroupQueryAttention if it applies, else standard operators.

The cache of a layer with a window is a buffer that is compacted, so its length differs from the position. The length is
an input of its own, `window_lengths.W` ``i32 [B]``, and rope, which needs positions, stays a separate operator.
"""

from __future__ import annotations

from collections.abc import Sequence

import onnx_ir as ir

from ....passes.graph.graph import Builder, attribute, width
from ....passes.rewrite.pattern import Op, Patterns, Rest, require
from ....passes.rewrite.rule import Rule
from ....runtime.cpu.slots import lengths_name

_ATTENTION = (
    "(int64[1,3] ids, int32[1] past, float[1,3,32] q, float[1,3,16] k, float[1,3,16] v, float[1,1,4,16] pk, "
    "float[1,1,4,16] pv, float[6,8] C, float[6,8] S) => (float[1,3,32] y, float[1,1,4,16] nk, float[1,1,4,16] nv) "
    "{ p = llmc.Positions(ids, past) qr = RotaryEmbedding<num_heads=2>(q, C, S, p) "
    "kr = RotaryEmbedding<num_heads=1>(k, C, S, p) y, nk, nv = llmc.CachedAttention"
    "<heads=2, kv_heads=1, head_dim=16, scale=0.25>(qr, kr, v, pk, pv, past) }"
)
_MERGED_ATTENTION = _ATTENTION.replace("float[1,3,32] q, float[1,3,16] k, float[1,3,16] v", "float[1,3,64] x").replace(
    "{", "{ sizes = Constant<value_ints=[32,16,16]>() q, k, v = Split<axis=-1>(x, sizes)"
)


def _windowed(text: str) -> str:
    return text.replace("CachedAttention<", "CachedAttention:windowed<window=2, ")


def _with_head(size: int) -> str:
    text = _ATTENTION.replace("int32", "int").replace(",8]", f",{size // 2}]").replace("32", str(2 * size))
    return text.replace("16", str(size)).replace("int[", "int32[")


class RopeAttentionToGroupQuery(Rule):
    """Cached attention with rope becomes GroupQueryAttention, which rotates q and k and writes the cache in place."""

    shared_inner = True
    fires = (_ATTENTION, _MERGED_ATTENTION)
    refuses = {
        "the rope is interleaved": _ATTENTION.replace("num_heads=2", "num_heads=2, interleaved=1"),
        "the head size is no multiple of 16": _with_head(24),
        "the layer has a window": _windowed(_ATTENTION),
    }

    @staticmethod
    def pattern(p: Patterns) -> tuple[Op, ...]:
        q = p.RotaryEmbedding("q", "cos", "sin", "positions").named("rope_q")
        k = p.RotaryEmbedding("k", "cos", "sin", "positions").named("rope_k")
        root = p.llmc.CachedAttention(q, k, "v", "*cache").named("attention")
        return root, root.out(1), root.out(2)

    def check(self, rope_q: ir.Node, rope_k: ir.Node, positions: ir.Value, attention: ir.Node) -> None:
        for node in (rope_q, rope_k):
            require(not attribute(node, "interleaved", 0), "the rope is interleaved")
        producer = positions.producer()
        require(producer is not None and producer.op_type == "Positions", "positions do not follow the cache")
        require(attribute(attention, "head_dim") % 16 == 0, "the head size is no multiple of 16")
        require(attribute(attention, "window") is None, "the layer has a window")

    def rewrite(
        self, g: Builder, q: ir.Value, k: ir.Value, v: ir.Value, cache: Rest, rope_q: ir.Node, attention: ir.Node
    ) -> Sequence[ir.Value]:
        packed = _packed(q, k, v)
        qkv = (packed, None, None) if packed is not None else (q, k, v)
        return _group_query(g, attention, qkv, cache, rope_q.inputs[1:3])


class _AnyAttention(Rule):
    @staticmethod
    def pattern(p: Patterns) -> tuple[Op, ...]:
        root = p.llmc.CachedAttention("q", "k", "v", "*cache").named("attention")
        return root, root.out(1), root.out(2)


class AttentionToGroupQuery(_AnyAttention):
    """Cached attention whose rope GroupQueryAttention does not support: rope stays a separate operator."""

    fires = (_with_head(24), _windowed(_ATTENTION))
    refuses = {"the head size is no multiple of 8": _with_head(20)}

    def check(self, attention: ir.Node) -> None:
        require(attribute(attention, "head_dim") % 8 == 0, "the head size is no multiple of 8")

    def rewrite(
        self, g: Builder, q: ir.Value, k: ir.Value, v: ir.Value, cache: Rest, attention: ir.Node
    ) -> Sequence[ir.Value]:
        return _group_query(g, attention, (q, k, v), cache)


class AttentionToStandard(_AnyAttention):
    """Cached attention of any head size becomes the standard Attention over a cache updated by TensorScatter."""

    fires = (_with_head(20), _windowed(_with_head(20)))

    def rewrite(
        self, g: Builder, q: ir.Value, k: ir.Value, v: ir.Value, cache: Rest, attention: ir.Node
    ) -> Sequence[ir.Value]:
        split = g.ints(0, 0, -1, attribute(attention, "head_dim"))
        query, *new = (g("Transpose", g("Reshape", x, split), perm=[0, 2, 1, 3]) for x in (q, k, v))
        past = g("Cast", _cached(g, attention, cache), to=int(ir.DataType.INT64))
        key, value = (g("TensorScatter", *pair, past, axis=-2) for pair in zip(cache[:2], new, strict=True))
        scale, window = attribute(attention, "scale"), attribute(attention, "window")
        if window is None:
            total = g("Add", past, g("Shape", q, start=1, end=2))
            y = g("Attention", query, key, value, None, None, None, total, is_causal=1, scale=scale)
        else:
            y = g("Attention", query, key, value, _window_mask(g, query, key, past, window), scale=scale)
        return g("Reshape", g("Transpose", y, perm=[0, 2, 1, 3]), g.ints(0, 0, -1)), key, value


def _cached(g: Builder, attention: ir.Node, cache: Rest) -> ir.Value:
    """Positions in each sequence's cache, ``i32 [B]``."""
    window, past = attribute(attention, "window"), cache[2]
    if window is None:
        assert past is not None
        return past
    name = lengths_name(window)
    return next((known for known in g.graph.body.inputs if known.name == name), None) or g.graph.input(
        name, "I32", ["B"]
    )


def _window_mask(g: Builder, q: ir.Value, key: ir.Value, past: ir.Value, window: int) -> ir.Value:
    """The cache positions that each new token attends to, ``bool [B, 1, S, C]``: at most `window`, itself included."""
    zero, one = g("Constant", value_int=0), g("Constant", value_int=1)
    steps = g("Range", zero, g("Squeeze", g("Shape", q, start=2, end=3), g.ints(0)), one)
    columns = g("Range", zero, g("Squeeze", g("Shape", key, start=2, end=3), g.ints(0)), one)
    position = g("Add", g("Unsqueeze", past, g.ints(1, 2, 3)), g("Unsqueeze", steps, g.ints(0, 1, 3)))
    distance = g("Sub", position, columns)
    near = g("Less", distance, g("Constant", value_int=window))
    return g("And", g("GreaterOrEqual", distance, zero), near)


def _group_query(
    g: Builder, attention: ir.Node, qkv: Rest, cache: Rest, rope: Sequence[ir.Value | None] = ()
) -> Sequence[ir.Value]:
    """A GroupQueryAttention node; its length inputs are total - 1 per sequence and the longest total, both int32."""
    query = qkv[0]
    assert query is not None
    new = g("Cast", g("Shape", query, start=1, end=2), to=int(ir.DataType.INT32))
    total = g("Add", _cached(g, attention, cache), new)
    window = attribute(attention, "window")
    one = g("Cast", g.ints(1), to=int(ir.DataType.INT32))
    return g.ms(
        "GroupQueryAttention",
        *(*qkv, *cache[:2], g("Sub", total, one), g("ReduceMax", total, keepdims=0), *rope),
        outputs=3,
        num_heads=attribute(attention, "heads"),
        kv_num_heads=attribute(attention, "kv_heads"),
        scale=attribute(attention, "scale"),
        do_rotary=int(bool(rope)),
        rotary_interleaved=0,
        **({} if window is None else {"local_window_size": window}),
    )


def _packed(*qkv: ir.Value) -> ir.Value | None:
    """The merged projection, if q, k and v are exactly its parts in order, else None."""
    split = qkv[0].producer()
    if split is None or split.op_type != "Split" or tuple(split.outputs) != qkv:
        return None
    return split.inputs[0]


class HeadNormToSimplified(Rule):
    """HeadNorm becomes SimplifiedLayerNormalization over a shape with separate heads."""

    fires = ("(float[2,3,8] x, float[4] W) => (float[2,3,8] y) { y = llmc.HeadNorm<epsilon=0.001>(x, W) }",)

    @staticmethod
    def pattern(p: Patterns) -> Op:
        return p.llmc.HeadNorm("x", "weight").named("norm")

    def rewrite(self, g: Builder, x: ir.Value, weight: ir.Value, norm: ir.Node) -> ir.Value:
        apart = g("Reshape", x, g.ints(0, 0, -1, width(weight)))
        epsilon = attribute(norm, "epsilon")
        normed = g("SimplifiedLayerNormalization", apart, weight, axis=-1, epsilon=epsilon, stash_type=1)
        return g("Reshape", normed, g.ints(0, 0, -1))


class PositionsToRange(Rule):
    """Positions are the cached length plus 0, 1, ... S-1."""

    fires = ("(int64[1,3] ids, int32[1] past) => (int64[1,3] y) { y = llmc.Positions(ids, past) }",)

    @staticmethod
    def pattern(p: Patterns) -> Op:
        return p.llmc.Positions("ids", "past")

    def rewrite(self, g: Builder, ids: ir.Value, past: ir.Value) -> ir.Value:
        size = g("Squeeze", g("Shape", ids, start=1, end=2), g.ints(0))
        steps = g("Range", g("Constant", value_int=0), size, g("Constant", value_int=1))
        cached = g("Cast", past, to=int(ir.DataType.INT64))
        return g("Add", g("Unsqueeze", cached, g.ints(1)), steps)


ATTENTION_RULES: tuple[Rule, ...] = (
    RopeAttentionToGroupQuery(),
    AttentionToGroupQuery(),
    AttentionToStandard(),
    HeadNormToSimplified(),
    PositionsToRange(),
)
