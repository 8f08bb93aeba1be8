"""Rope, norms of heads, the cache's update and attention become one operator, on the merged q, k, v."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import onnx_ir as ir

from ....passes.graph import ops
from ....passes.graph.attention import AFTER, APART, LAYER, NORMED, PARTIAL, UNTURNED
from ....passes.graph.graph import Builder, Graph, attribute, block_of, width
from ....passes.rewrite.pattern import Miss, require
from ....passes.rewrite.rule import Outcome, Pass, replace_value
from ....runtime.engine_file.bind import Concat
from ....runtime.engine_file.rope import POSITIONS

SHARED = "SharedAttention"
LATE_NORMS = "norms behind rope that are not one RMSNorm of heads for q and one for k"
WINDOW = "layers that share a cache with another window"
CHUNKS = "attention in chunks, beyond the first"
ONE_LINEAR = "q, k and v that could not become one linear"
_TURN = ("interleaved", "rotary_embedding_dim")
_ATTENTION = (
    "(int64[1,3] ids, int32[1] past, float[1,3,64] x, float[1,1,4,16] pk, "
    "float[1,1,4,16] pv, float[6,8] C, float[6,8] S) => (float[1,3,32] y, float[1,1,4,16] nk, float[1,1,4,16] nv) "
    "{ sizes = Constant<value_ints=[32,16,16]>() q, k, v = Split<axis=-1>(x, sizes) p = llmc.Positions(ids, past) "
    "qr = RotaryEmbedding<num_heads=2>(q, C, S, p) kr = RotaryEmbedding<num_heads=1>(k, C, S, p) "
    "y, nk, nv = llmc.CachedAttention<heads=2, kv_heads=1, head_dim=16, scale=0.25>(qr, kr, v, pk, pv, past) }"
)
_NORMED = (
    _ATTENTION.replace("float[6,8] S)", "float[6,8] S, float[16] Q, float[16] K)")
    .replace("(q, C, S, p)", "(qn, C, S, p)")
    .replace("(k, C, S, p)", "(kn, C, S, p)")
    .replace("p = llmc", "qn = llmc.HeadNorm<epsilon=0.001>(q, Q) kn = llmc.HeadNorm<epsilon=0.001>(k, K) p = llmc")
)
_AFTER = _ATTENTION.replace("float[6,8] S)", "float[6,8] S, float[16] Q, float[16] K)").replace(
    "y, nk, nv = llmc.CachedAttention<heads=2, kv_heads=1, head_dim=16, scale=0.25>(qr, kr",
    "qn = llmc.HeadNorm<epsilon=0.001>(qr, Q) kn = llmc.HeadNorm<epsilon=0.001>(kr, K) "
    "y, nk, nv = llmc.CachedAttention<heads=2, kv_heads=1, head_dim=16, scale=0.25>(qn, kn",
)
_WIDE = _NORMED.replace("float[16] Q", "float[32] Q").replace(
    "llmc.HeadNorm<epsilon=0.001>(q", "RMSNormalization<axis=-1, epsilon=0.001>(q"
)
_PARTIAL = _ATTENTION.replace("[6,8]", "[6,4]").replace("num_heads=", "rotary_embedding_dim=8, num_heads=")
_APART = _ATTENTION.replace("float[6,8] S)", "float[6,8] S, float[6,8] D)").replace("(q, C, S", "(q, C, D")


@dataclass(frozen=True)
class _Heads:
    """Queries, keys or values of an attention, and what they went through from the start to it."""

    start: ir.Value
    before: ir.Node | None
    rope: ir.Node | None
    after: ir.Node | None

    @property
    def nodes(self) -> list[ir.Node]:
        return [node for node in (self.before, self.rope, self.after) if node is not None]

    @staticmethod
    def of(value: ir.Value | None) -> _Heads:
        found: list[ir.Node | None] = []
        for operators in (_NORMS, ("RotaryEmbedding",), _NORMS):
            node = value.producer() if value is not None else None
            passed = node is not None and node.op_type in operators
            found.append(node if passed else None)
            value = node.inputs[0] if node is not None and passed else value
        after, rope, before = found
        assert value is not None
        return _Heads(value, before, rope, after) if rope is not None else _Heads(value, after, None, None)


_NORMS = ("HeadNorm", "RMSNormalization", "LayerNormalization")


class FuseRopeAttention(Pass):
    """Rope of the merged q, k, v, the cache's update and attention are one operator, which two or three kernels do."""

    fires = (
        _ATTENTION,
        _ATTENTION.replace("CachedAttention<", "CachedAttention:windowed<window=2, "),
        _NORMED,
        _NORMED.replace("CachedAttention<", "CachedAttention:windowed_capped<window=2, softcap=3.0, "),
        _AFTER,
        _WIDE,
        _PARTIAL,
        _APART,
        _NORMED.replace("epsilon=0.001>(k", "epsilon=0.002>(k"),
        _NORMED.replace("(qn, C, S, p)", "(q, C, S, p)").replace("qr, kr, v", "qn, kn, v").replace("kn, C", "k, C"),
    )
    refuses = {
        "q and k are rotated differently": _ATTENTION.replace("num_heads=1>(k", "num_heads=1, interleaved=1>(k"),
        "positions do not follow the cache": _ATTENTION.replace("p = llmc.Positions(ids, past)", "p = Identity(ids)"),
        LATE_NORMS: _AFTER.replace("epsilon=0.001>(kr", "epsilon=0.002>(kr"),
    }

    def run(self, graph: Graph) -> Outcome:
        outcome = Outcome()
        for node in [node for node in graph.nodes if is_attention(node)]:
            try:
                read = _read(graph, node)
            except Miss as miss:
                outcome.note(miss, node)
                continue
            for before, after in zip(node.outputs, _rewrite(graph, node, read), strict=True):
                replace_value(before, after)
            outcome.fired += 1
        if outcome.fired:
            graph.remove_dead()
        return outcome


def is_attention(node: ir.Node) -> bool:
    """Whether this is an attention that `FuseRopeAttention` should take."""
    return node.domain == ops.DOMAIN and node.op_type in ("CachedAttention", SHARED)


def why_not(graph: Graph, attention: ir.Node) -> str:
    """Why it could not."""
    try:
        _read(graph, attention)
    except Miss as miss:
        return miss.reason
    return ""


@dataclass(frozen=True)
class _Read:
    """An attention that can be fused: its parts as the merged linear has them, and the norms that the kernel does."""

    parts: tuple[_Heads, ...]
    norms: tuple[ir.Node, ...]


def _read(graph: Graph, node: ir.Node) -> _Read:
    require(attribute(node, "chunk") is None, CHUNKS)
    shared = node.op_type == SHARED
    parts = tuple(_Heads.of(value) for value in node.inputs[: 1 if shared else 3])
    turned = parts[:2]
    _require_one_rope(turned[0], turned[-1])
    late = _one_norm([part.after for part in turned])
    require(late or not any(part.after for part in turned), LATE_NORMS)
    if shared:
        source = node.inputs[1].producer() if node.inputs[1] is not None else None
        require(source is not None and source.op_type == "RopeAttention", "a shared cache of another rank")
        assert source is not None
        require(attribute(source, "window") == attribute(node, "window"), WINDOW)
    else:
        _require_one_linear(graph, [part.start for part in parts])
    return _Read(parts, late or _one_norm([part.before for part in turned]))


def _rewrite(graph: Graph, node: ir.Node, read: _Read) -> list[ir.Value]:
    """The operator, whose inputs are those of `rope_inputs`."""
    shared, parts = node.op_type == SHARED, read.parts
    g = graph.build(block_of([node, *(one for part in parts for one in part.nodes)]), before=node)
    x = parts[0].start if shared else _merged(graph, g, *(part.start for part in parts))
    x = _normed_parts(g, x, read)
    rope, k_rope = parts[0].rope, parts[0 if shared else 1].rope
    own: dict[str, Any] = {name: attr.value for name, attr in node.attributes.items()}
    kinds = [node.overload, NORMED if read.norms else "", AFTER if read.norms[:1] == (parts[0].after,) else ""]
    tables, apart = (), ()
    if rope is None or k_rope is None:
        kinds.append(UNTURNED)
    else:
        tables, own["interleaved"] = k_rope.inputs[1:], attribute(k_rope, "interleaved", 0)
        size = attribute(k_rope, "rotary_embedding_dim", 0)
        own |= {"rotary_embedding_dim": size} if size else {}
        apart = () if rope.inputs[1:3] == k_rope.inputs[1:3] else rope.inputs[1:3]
        kinds += [PARTIAL if size else "", APART if apart else ""]
    if read.norms:
        own["epsilon"] = attribute(read.norms[0], "epsilon")
    first, last = (1, 4) if shared else (3, 6)
    made = g.llmc(
        "RopeSharedAttention" if shared else "RopeAttention",
        *(x, *tables, *node.inputs[first:last], *(norm.inputs[1] for norm in read.norms), *apart, *node.inputs[last:]),
        outputs=len(node.outputs),
        overload="_".join(filter(None, kinds)),
        **own,
    )
    return [made] if shared else [*made]


def _require_one_rope(q: _Heads, k: _Heads) -> None:
    if q.rope is None and k.rope is None:
        return
    require(q.rope is not None and k.rope is not None, "q and k are rotated differently")
    assert q.rope is not None and k.rope is not None
    same = all(attribute(q.rope, name, 0) == attribute(k.rope, name, 0) for name in _TURN)
    require(same and q.rope.inputs[3] is k.rope.inputs[3], "q and k are rotated differently")
    positions = k.rope.inputs[3]
    assert positions is not None
    producer = positions.producer()
    made = positions.name == POSITIONS if producer is None else producer.op_type == "Positions"
    require(made, "positions do not follow the cache")


def _one_norm(norms: list[ir.Node | None]) -> tuple[ir.Node, ...]:
    """The norms of q and k, if the kernel that turns heads can do them: RMS norms, with one weight for all heads."""
    found = tuple(node for node in norms if node is not None and node.op_type == "HeadNorm" and not node.overload)
    same = len({attribute(node, "epsilon") for node in found}) == 1
    return found if same and len(found) == len(norms) else ()


def _require_one_linear(graph: Graph, starts: list[ir.Value]) -> None:
    """q, k, v are a Split's results in their order; or q and k are, and v is k."""
    split = starts[0].producer()
    results = [*split.outputs] if split is not None and split.op_type == "Split" else []
    made = split.inputs[0].producer() if results and split is not None and split.inputs[0] is not None else None
    require(made is None or made.op_type not in _NORMS, "a norm of all heads together, which are on several ranks")
    twice = len(results) == 2 and starts == [*results, results[1]]
    require(twice or starts == results, ONE_LINEAR)
    assert split is not None
    require(not twice or all(_parts(graph, split)), "values that are the keys")


def _merged(graph: Graph, g: Builder, q: ir.Value, k: ir.Value, v: ir.Value) -> ir.Value:
    """q, k and v side by side. If the values are the keys, the linear computes these twice."""
    split = q.producer()
    assert split is not None and split.inputs[0] is not None
    if v is not k:
        return split.inputs[0]
    linear = split.inputs[0].producer()
    assert linear is not None
    weights = [
        graph.weight(f"{value.name}+", Concat((*parts, parts[-1]), 0))
        if value is not None and len(parts) > 1
        else value
        for value, parts in zip(linear.inputs[1:], _parts(graph, split), strict=True)
    ]
    return g.llmc("Linear", linear.inputs[0], *weights, overload=linear.overload)


def _parts(graph: Graph, split: ir.Node) -> Iterator[tuple[Any, ...]]:
    """Of each weight of the linear before a Split, those of q and of k; a scalar is one; () if they are not known."""
    linear = split.inputs[0].producer() if split.inputs[0] is not None else None
    for value in linear.inputs[1:] if linear is not None and linear.op_type == "Linear" else (None,):
        expr = graph.expr(value)
        two = isinstance(expr, Concat) and expr.axis == 0 and len(expr.parts) == 2
        yield expr.parts if isinstance(expr, Concat) and two else () if expr is None or expr.shape else (expr,)


def _normed_parts(g: Builder, x: ir.Value, read: _Read) -> ir.Value:
    """x with the other norms before rope, each on its columns."""
    stop = 0
    for part in read.parts:
        start, stop, norm = stop, stop + width(part.start), part.before
        if norm is None or norm in read.norms:
            continue
        layer = norm.op_type == "LayerNormalization"
        kind = f"{LAYER}_bias" if layer and len(norm.inputs) == 3 else LAYER if layer else norm.overload
        epsilon = attribute(norm, "epsilon", 1e-5)
        x = g.llmc("PartNorm", x, *norm.inputs[1:], overload=kind, start=start, stop=stop, epsilon=epsilon)
    return x
