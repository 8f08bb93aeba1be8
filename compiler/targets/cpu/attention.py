"""Cached attention to ONNX Runtime's CPU kernels: GroupQueryAttention if it applies, else standard operators.

The cache of a layer with a window is a buffer that is compacted, so its length differs from the position. The length is
an input of its own, `window_lengths.W` ``i32 [B]``, and rope, which needs positions, stays a separate operator.
"""

from __future__ import annotations

from collections.abc import Sequence

import onnx_ir as ir

from ....passes.graph.attention import EACH, LAYER, SINKS
from ....passes.graph.graph import Builder, Graph, attribute, width
from ....passes.rewrite.pattern import Op, Patterns, Rest, require
from ....passes.rewrite.rule import Outcome, Pass, Rule
from ....runtime.cpu.slots import lengths_name
from ....runtime.errors import Unsupported

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


def _chunked(text: str) -> str:
    return text.replace("CachedAttention<", "CachedAttention:chunked<chunk=2, ")


def _with_head(size: int) -> str:
    text = _ATTENTION.replace("int32", "int").replace(",8]", f",{size // 2}]").replace("32", str(2 * size))
    return text.replace("16", str(size)).replace("int[", "int32[")


def _capped(text: str) -> str:
    return text.replace("CachedAttention<", "CachedAttention:capped<softcap=2.0, ")


def _sinks(text: str) -> str:
    return (
        text.replace("CachedAttention<", "CachedAttention:sinks<")
        .replace("pk, pv, past)", "pk, pv, past, K)")
        .replace(" C, float", " C, float[2] K, float")
    )


def _partial(size: int) -> str:
    """Heads of 48, of which `size` elements are rotated."""
    text = _with_head(48).replace(",24]", f",{size // 2}]")
    return text.replace("num_heads=2", f"num_heads=2, rotary_embedding_dim={size}").replace(
        "num_heads=1", f"num_heads=1, rotary_embedding_dim={size}"
    )


class RopeAttentionToGroupQuery(Rule):
    """Cached attention with rope becomes GroupQueryAttention, which rotates q and k and writes the cache in place."""

    shared_inner = True
    fires = (_ATTENTION, _MERGED_ATTENTION, _capped(_ATTENTION), _partial(16))
    refuses = {
        "q and k are rotated differently": _ATTENTION.replace("num_heads=2", "num_heads=2, interleaved=1"),
        "what is rotated is no multiple of 16": _partial(8),
        "the head size is no multiple of 16": _with_head(24),
        "the layer has a window": _windowed(_ATTENTION),
        "the layer has chunks": _chunked(_ATTENTION),
    }

    @staticmethod
    def pattern(p: Patterns) -> tuple[Op, ...]:
        q = p.RotaryEmbedding("q", "cos", "sin", "positions").named("rope_q")
        k = p.RotaryEmbedding("k", "cos", "sin", "positions").named("rope_k")
        root = p.llmc.CachedAttention(q, k, "v", "*cache").named("attention")
        return root, root.out(1), root.out(2)

    def check(self, rope_q: ir.Node, rope_k: ir.Node, positions: ir.Value, attention: ir.Node) -> None:
        for name in ("interleaved", "rotary_embedding_dim"):
            require(attribute(rope_q, name, 0) == attribute(rope_k, name, 0), "q and k are rotated differently")
        require(attribute(rope_q, "rotary_embedding_dim", 0) % 16 == 0, "what is rotated is no multiple of 16")
        producer = positions.producer()
        require(producer is not None and producer.op_type == "Positions", "positions do not follow the cache")
        require(attribute(attention, "head_dim") % 16 == 0, "the head size is no multiple of 16")
        require(attribute(attention, "window") is None, "the layer has a window")
        require(attribute(attention, "chunk") is None, "the layer has chunks")

    def rewrite(
        self, g: Builder, q: ir.Value, k: ir.Value, v: ir.Value, cache: Rest, rope_q: ir.Node, attention: ir.Node
    ) -> Sequence[ir.Value]:
        packed = _packed(q, k, v)
        qkv = (packed, None, None) if packed is not None else (q, k, v)
        return group_query(g, attention, qkv, cache, rope_q)


class _AnyAttention(Rule):
    @staticmethod
    def pattern(p: Patterns) -> tuple[Op, ...]:
        root = p.llmc.CachedAttention("q", "k", "v", "*cache").named("attention")
        return root, root.out(1), root.out(2)


class AttentionToGroupQuery(_AnyAttention):
    """Cached attention whose rope GroupQueryAttention does not support: rope stays a separate operator."""

    fires = (_with_head(24), _windowed(_ATTENTION), _capped(_windowed(_ATTENTION)), _sinks(_with_head(24)))
    refuses = {
        "the head size is no multiple of 8": _with_head(20),
        "the layer has chunks": _chunked(_ATTENTION),
    }

    def check(self, attention: ir.Node) -> None:
        require(attribute(attention, "head_dim") % 8 == 0, "the head size is no multiple of 8")
        require(attribute(attention, "chunk") is None, "the layer has chunks")

    def rewrite(
        self, g: Builder, q: ir.Value, k: ir.Value, v: ir.Value, cache: Rest, attention: ir.Node
    ) -> Sequence[ir.Value]:
        return group_query(g, attention, (q, k, v), cache)


class AttentionToStandard(_AnyAttention):
    """Cached attention of any head size, or in chunks, becomes the standard Attention over a cache updated by
    TensorScatter. A layer with chunks keeps all positions."""

    fires = (_with_head(20), _windowed(_with_head(20)), _capped(_with_head(20)), _chunked(_ATTENTION))
    refuses = {"there are sinks": _sinks(_with_head(20))}

    def check(self, attention: ir.Node) -> None:
        require(SINKS not in attention.overload, "there are sinks")

    def rewrite(
        self, g: Builder, q: ir.Value, k: ir.Value, v: ir.Value, cache: Rest, attention: ir.Node
    ) -> Sequence[ir.Value]:
        split = g.ints(0, 0, -1, attribute(attention, "head_dim"))
        new = (g("Transpose", g("Reshape", x, split), perm=[0, 2, 1, 3]) for x in (k, v))
        past = g("Cast", _cached(g, attention, cache[2]), to=int(ir.DataType.INT64))
        key, value = (g("TensorScatter", *pair, past, axis=-2) for pair in zip(cache[:2], new, strict=True))
        return _standard(g, attention, q, key, value, past), key, value


_SHARED = (
    "(int32[1] past, float[1,3,32] q, float[1,1,4,16] pk, float[1,1,4,16] pv) => (float[1,3,32] y) "
    "{ y = llmc.SharedAttention<heads=2, kv_heads=1, head_dim=16, scale=0.25>(q, pk, pv, past) }"
)


class SharedToStandard(Rule):
    """Attention to the cache of an earlier layer becomes the standard Attention, as no kernel of ONNX Runtime's own
    attends without new keys."""

    fires = (_SHARED, _SHARED.replace("SharedAttention<", "SharedAttention:windowed<window=2, "))
    refuses = {
        "there are sinks": _SHARED.replace("SharedAttention<", "SharedAttention:sinks<")
        .replace("pk, pv, past)", "pk, pv, past, K)")
        .replace("float[1,1,4,16] pv)", "float[1,1,4,16] pv, float[2] K)")
    }

    @staticmethod
    def pattern(p: Patterns) -> Op:
        return p.llmc.SharedAttention("q", "key", "value", "past", "*sinks").named("attention")

    def check(self, attention: ir.Node) -> None:
        require(SINKS not in attention.overload, "there are sinks")

    def rewrite(
        self, g: Builder, q: ir.Value, key: ir.Value, value: ir.Value, past: ir.Value, attention: ir.Node
    ) -> ir.Value:
        cached = g("Cast", _cached(g, attention, past), to=int(ir.DataType.INT64))
        return _standard(g, attention, q, key, value, cached)


class RefuseSinks(Pass):
    """Refuses attention with sinks that is left: of ONNX Runtime's kernels only GroupQueryAttention takes them."""

    def run(self, graph: Graph) -> Outcome:
        for node in graph.nodes:
            if node.op_type in ("CachedAttention", "SharedAttention") and SINKS in node.overload:
                size = attribute(node, "head_dim")
                shared = "attention to the cache of another layer"
                raise Unsupported(
                    f"cannot compute {node.op_type} ({node.outputs[0].name}) with sinks on the CPU",
                    found=shared if size % 8 == 0 else f"a head size of {size}, which is no multiple of 8",
                    fix="--target sm_90 or another GPU's, whose kernels take sinks with any head",
                )
        return Outcome()


def _standard(g: Builder, attention: ir.Node, q: ir.Value, key: ir.Value, value: ir.Value, past: ir.Value) -> ir.Value:
    """Standard Attention of q f32 [B, S, A*D] to a cache that holds the new tokens; `past` i64 [B] is without them."""
    split = g.ints(0, 0, -1, attribute(attention, "head_dim"))
    query = g("Transpose", g("Reshape", q, split), perm=[0, 2, 1, 3])
    given = {"scale": attribute(attention, "scale"), **_softcap(attention)}
    if attribute(attention, "window") is None and attribute(attention, "chunk") is None:
        total = g("Add", past, g("Shape", q, start=1, end=2))
        y = g("Attention", query, key, value, None, None, None, total, is_causal=1, **given)
    else:
        y = g("Attention", query, key, value, _mask(g, attention, query, _buffer(g, key), past), **given)
    return g("Reshape", g("Transpose", y, perm=[0, 2, 1, 3]), g.ints(0, 0, -1))


def _buffer(g: Builder, key: ir.Value) -> ir.Value:
    """The cache before the new tokens, which has the same capacity; every part of a rank can read an input."""
    name = str(key.name).replace("present.", "past.", 1)
    return next((value for value in g.graph.body.inputs if value.name == name), key)


def _softcap(attention: ir.Node) -> dict[str, float]:
    cap = attribute(attention, "softcap")
    return {} if cap is None else {"softcap": cap}


def _cached(g: Builder, attention: ir.Node, past: ir.Value | None) -> ir.Value:
    """Positions in each sequence's cache, ``i32 [B]``."""
    window = attribute(attention, "window")
    if window is None:
        assert past is not None
        return past
    name = lengths_name(window)
    return next((known for known in g.graph.body.inputs if known.name == name), None) or g.graph.input(
        name, "I32", ["B"]
    )


def _mask(g: Builder, attention: ir.Node, q: ir.Value, key: ir.Value, past: ir.Value) -> ir.Value:
    """The cache positions that each new token attends to, ``bool [B, 1, S, C]``: at most `window`, itself included, or
    those of its chunk."""
    zero, one = g("Constant", value_int=0), g("Constant", value_int=1)
    steps = g("Range", zero, g("Squeeze", g("Shape", q, start=2, end=3), g.ints(0)), one)
    columns = g("Range", zero, g("Squeeze", g("Shape", key, start=2, end=3), g.ints(0)), one)
    position = g("Add", g("Unsqueeze", past, g.ints(1, 2, 3)), g("Unsqueeze", steps, g.ints(0, 1, 3)))
    distance = g("Sub", position, columns)
    if (chunk := attribute(attention, "chunk")) is not None:
        length = g("Constant", value_int=chunk)
        near = g("Equal", g("Div", position, length), g("Div", columns, length))
    else:
        near = g("Less", distance, g("Constant", value_int=attribute(attention, "window")))
    return g("And", g("GreaterOrEqual", distance, zero), near)


def group_query(
    g: Builder, attention: ir.Node, qkv: Rest, cache: Rest, rope: ir.Node | None = None
) -> Sequence[ir.Value]:
    """A GroupQueryAttention node; its length inputs are total - 1 per sequence and the longest total, both int32."""
    query = qkv[0]
    assert query is not None
    new = g("Cast", g("Shape", query, start=1, end=2), to=int(ir.DataType.INT32))
    total = g("Add", _cached(g, attention, cache[2]), new)
    window = attribute(attention, "window")
    one = g("Cast", g.ints(1), to=int(ir.DataType.INT32))
    tables = rope.inputs[1:3] if rope is not None else (None, None)
    sinks = (None, None, cache[3]) if len(cache) > 3 else ()
    return g.ms(
        "GroupQueryAttention",
        *(*qkv, *cache[:2], g("Sub", total, one), g("ReduceMax", total, keepdims=0), *tables, *sinks),
        outputs=3,
        num_heads=attribute(attention, "heads"),
        kv_num_heads=attribute(attention, "kv_heads", 1),  # the rows of latents are one head
        scale=attribute(attention, "scale"),
        do_rotary=int(rope is not None),
        rotary_interleaved=attribute(rope, "interleaved", 0) if rope is not None else 0,
        **_softcap(attention),
        **({} if window is None else {"local_window_size": window}),
    )


def _packed(*qkv: ir.Value) -> ir.Value | None:
    """The merged projection, if q, k and v are exactly its parts in order, else None."""
    split = qkv[0].producer()
    if split is None or split.op_type != "Split" or tuple(split.outputs) != qkv:
        return None
    return split.inputs[0]


class HeadNormToSimplified(Rule):
    """HeadNorm becomes a norm over a shape with separate heads."""

    fires = (
        "(float[2,3,8] x, float[4] W) => (float[2,3,8] y) { y = llmc.HeadNorm<epsilon=0.001>(x, W) }",
        "(float[2,3,8] x, float[4] W, float[4] B) => (float[2,3,8] y) "
        "{ y = llmc.HeadNorm:layer_bias<epsilon=0.001>(x, W, B) }",
        "(float[2,3,8] x, float[2,4] W) => (float[2,3,8] y) { y = llmc.HeadNorm:layer_each<epsilon=0.001>(x, W) }",
    )

    @staticmethod
    def pattern(p: Patterns) -> Op:
        return p.llmc.HeadNorm("x", "weight", "bias?").named("norm")

    def rewrite(self, g: Builder, x: ir.Value, weight: ir.Value, bias: ir.Value | None, norm: ir.Node) -> ir.Value:
        size, kinds = width(weight), norm.overload.split("_")
        apart = g("Reshape", x, g.ints(0, 0, -1, size))
        ones = [1.0] * size if EACH in kinds else None
        factor = weight if ones is None else g("Constant", value_floats=ones)
        options = {"axis": -1, "epsilon": attribute(norm, "epsilon"), "stash_type": 1}
        if LAYER in kinds:
            normed = g("LayerNormalization", apart, factor, bias, **options)
        else:
            normed = g("SimplifiedLayerNormalization", apart, factor, **options)
        normed = normed if ones is None else g("Mul", normed, weight)
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


ATTENTION_RULES: tuple[Pass, ...] = (
    RopeAttentionToGroupQuery(),
    AttentionToGroupQuery(),
    AttentionToStandard(),
    SharedToStandard(),
    RefuseSinks(),
    HeadNormToSimplified(),
    PositionsToRange(),
)
