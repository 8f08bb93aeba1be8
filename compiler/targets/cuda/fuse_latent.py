"""The norm of the latent, rope, the cache's update and latent attention become one operator, on results of linears."""

from __future__ import annotations

from dataclasses import dataclass

import onnx_ir as ir

from ....passes.graph import ops
from ....passes.graph.graph import Graph, attribute, block_of, width
from ....passes.rewrite.pattern import Miss, require
from ....passes.rewrite.rule import Outcome, Pass, replace_value
from ....runtime.engine_file.rope import POSITIONS

LATENT = "LatentAttention"
NO_NORM = "a latent without an RMS norm of its own"
APART = "a latent and a key that are not the columns of one linear"
WIDEST = 512
"""Numbers of a latent, whose sums fill a program's registers."""
WIDE = f"a latent of more than {WIDEST} numbers"
QUERIES = "queries that are neither a linear's nor the first columns of the latent's"
_EXAMPLE = (
    "(int64[1,3] ids, int32[1] past, float[1,3,40] x, float[1,3,24] q, float[8] N, float[20,8] W, float[6,4] C, "
    "float[6,4] S, float[1,1,5,16] pk) => (float[1,3,12] y, float[1,1,5,16] nk) "
    "{ sizes = Constant<value_ints=[24,16]>() f, b = Split<axis=-1>(x, sizes) parts = Constant<value_ints=[8,8]>() "
    "r, k = Split<axis=-1>(b, parts) c = RMSNormalization<axis=-1, epsilon=0.001>(r, N) p = llmc.Positions(ids, past) "
    "y, nk = llmc.LatentAttention<heads=2, nope=4, rope=8, value=6, scale=0.3, interleaved=1>"
    "(q, c, k, W, C, S, p, pk, past) }"
)
_OWN = _EXAMPLE.replace("float[1,3,24] q, ", "").replace("(q, c", "(f, c")
_RANKED = (
    _EXAMPLE.replace("float[8] N", "float[24] M, float[8] N")
    .replace("float[1,3,12] y", "float[1,3,24] t, float[1,3,12] y")
    .replace("p = llmc", "t = RMSNormalization<axis=-1, epsilon=0.002>(f, M) p = llmc")
)
_ALONE = (
    _EXAMPLE.replace("float[1,3,40] x", "float[1,3,16] x")
    .replace("sizes = Constant<value_ints=[24,16]>() f, b = Split<axis=-1>(x, sizes) ", "")
    .replace("(b, parts)", "(x, parts)")
)


@dataclass(frozen=True)
class _Read:
    """What feeds an attention: the linear's result with its latent and key, its norm, and the norm of what is first."""

    x: ir.Value
    norm: ir.Node
    q: ir.Value
    first: ir.Node | None
    """An RMS norm of the first columns of x."""


class FuseLatentAttention(Pass):
    """Norm and rope of the merged latent and key, the cache's update and attention are one operator."""

    fires = (
        _EXAMPLE,
        _OWN,
        _RANKED,
        _ALONE,
        _OWN.replace("float[1,1,5,16] pk", "float[1,1,5,16] pk, float[6,1] F")
        .replace("pk, past)", "pk, past, F)")
        .replace("Attention<", "Attention:tempered<"),
    )
    refuses = {
        NO_NORM: _ALONE.replace("c = RMSNormalization<axis=-1, epsilon=0.001>(r, N)", "c = Relu(r)"),
        APART: _ALONE.replace("(q, c, k,", "(q, c, r,"),
        QUERIES: _RANKED.replace("RMSNormalization<axis=-1, epsilon=0.002>(f, M)", "Relu(f)"),
        WIDE: _ALONE.replace("float[1,3,16] x", "float[1,3,528] x")
        .replace("value_ints=[8,8]", "value_ints=[520,8]")
        .replace("float[8] N", "float[520] N")
        .replace("[20,8] W", "[20,520] W")
        .replace("[1,1,5,16]", "[1,1,5,528]"),
        "positions do not follow the cache": _ALONE.replace("p = llmc.Positions(ids, past)", "p = Identity(ids)"),
    }

    def run(self, graph: Graph) -> Outcome:
        outcome = Outcome()
        for node in [node for node in graph.nodes if is_latent(node)]:
            try:
                read = _read(node)
            except Miss as miss:
                outcome.note(miss, node)
                continue
            _rewrite(graph, node, read)
            outcome.fired += 1
        if outcome.fired:
            graph.remove_dead()
        return outcome


def is_latent(node: ir.Node) -> bool:
    """Whether this is an attention that `FuseLatentAttention` should take."""
    return node.domain == ops.DOMAIN and node.op_type == LATENT


def why_not(attention: ir.Node) -> str:
    """Why it could not."""
    try:
        _read(attention)
    except Miss as miss:
        return miss.reason
    return ""


def _producer(value: ir.Value | None, op_type: str) -> ir.Node | None:
    node = value.producer() if value is not None else None
    return node if node is not None and node.op_type == op_type else None


def _read(node: ir.Node) -> _Read:
    q, latent, key = node.inputs[:3]
    assert q is not None
    norm = _producer(latent, "RMSNormalization")
    require(norm is not None, NO_NORM)
    assert norm is not None
    parts = _producer(norm.inputs[0], "Split")
    require(parts is not None and [*parts.outputs] == [norm.inputs[0], key], APART)
    assert parts is not None and parts.inputs[0] is not None
    require(width(norm.outputs[0]) <= WIDEST, WIDE)
    positions = node.inputs[6]
    made = _producer(positions, "Positions") is not None
    require(made or (positions is not None and positions.name == POSITIONS), "positions do not follow the cache")
    whole = _producer(parts.inputs[0], "Split")
    if whole is None:
        return _Read(parts.inputs[0], norm, q, None)
    assert whole.inputs[0] is not None
    first, last = whole.outputs[0], whole.outputs[-1]
    require(len(whole.outputs) == 2 and last is parts.inputs[0], APART)
    readers = [user for user, _ in first.uses()]
    if q is first:
        require(readers == [node], QUERIES)
        return _Read(whole.inputs[0], norm, whole.inputs[0], None)
    require(_producer(q, "Split") is None, QUERIES)
    normed = all(one.op_type == "RMSNormalization" for one in readers) and not first.is_graph_output()
    require(len(readers) < 2 and normed, QUERIES)
    return _Read(whole.inputs[0], norm, q, readers[0] if readers else None)


def _rewrite(graph: Graph, node: ir.Node, read: _Read) -> None:
    if read.first is not None:
        g = graph.build(block_of([read.first]), before=read.first)
        weight, epsilon = read.first.inputs[1], attribute(read.first, "epsilon", 1e-5)
        replace_value(read.first.outputs[0], g.llmc("FirstNorm", read.x, weight, epsilon=epsilon))
    g = graph.build(block_of([node, read.norm]), before=node)
    own = {name: attr.value for name, attr in node.attributes.items()}
    made = g.llmc(
        "MergedLatentAttention",
        *(read.q, read.x, read.norm.inputs[1], *node.inputs[3:]),
        outputs=2,
        overload=node.overload,
        **own,
        epsilon=attribute(read.norm, "epsilon", 1e-5),
    )
    for before, after in zip(node.outputs, made, strict=True):
        replace_value(before, after)
