"""Rewrites logical operators to those a launch plan computes: rope, cache and attention become one operator."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

import onnx_ir as ir

from ....passes.graph import ops
from ....passes.graph.attention import NORMED
from ....passes.graph.graph import MODULE, Builder, Graph, attribute
from ....passes.rewrite.pattern import Op, Patterns, Rest, require
from ....passes.rewrite.rule import Outcome, Pass, Rule
from ....passes.simplify import Simplify
from ....runtime.engine_file.rope import POSITIONS
from ....runtime.errors import Unsupported

LEGAL = frozenset(
    [("", op) for op in ("RMSNormalization", "Add", "Split", "Constant")]
    + [*ops.COLLECTIVES]
    + [
        (ops.DOMAIN, op)
        for op in (
            "Embedding",
            "Linear",
            "AddRMSNorm",
            "GatedActivation",
            "SelectRows",
            "Positions",
            "RopeAttention",
            "QuantizeActivations",
        )
    ]
)

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


def _attention(p: Patterns, q: Op, k: Op, v: Op) -> tuple[Op, ...]:
    """Attention over a cache, with the rope of q and k."""
    q = p.RotaryEmbedding(q, "cos", "sin", "positions").named("rope_q")
    k = p.RotaryEmbedding(k, "cos", "sin", "positions").named("rope_k")
    root = p.llmc.CachedAttention(q, k, v, "*cache").named("attention")
    return root, root.out(1), root.out(2)


def _require_one_rope(rope_q: ir.Node, rope_k: ir.Node, positions: ir.Value) -> None:
    same = attribute(rope_q, "interleaved", 0) == attribute(rope_k, "interleaved", 0)
    require(same, "q and k are rotated differently")
    producer = positions.producer()
    made = positions.name == POSITIONS if producer is None else producer.op_type == "Positions"
    require(made, "positions do not follow the cache")


def _rope_attention(
    g: Builder, qkv: ir.Value, cache: Rest, rope: ir.Node, attention: ir.Node, *norms: ir.Value, **epsilon: float
) -> Sequence[ir.Value]:
    return g.llmc(
        "RopeAttention",
        *(qkv, *rope.inputs[1:], *cache, *norms),
        outputs=3,
        overload="_".join(filter(None, (attention.overload, NORMED if norms else ""))),
        **{name: attr.value for name, attr in attention.attributes.items()},
        interleaved=attribute(rope, "interleaved", 0),
        **epsilon,
    )


class FuseRopeAttention(Rule):
    """Rope of the merged q, k, v, the cache's update and attention are one operator, which two or three kernels do."""

    fires = (_ATTENTION, _ATTENTION.replace("CachedAttention<", "CachedAttention:windowed<window=2, "))
    refuses = {
        "q and k are rotated differently": _ATTENTION.replace("num_heads=1>(k", "num_heads=1, interleaved=1>(k"),
    }

    @staticmethod
    def pattern(p: Patterns) -> tuple[Op, ...]:
        split = p.Split("qkv", "sizes?")
        return _attention(p, split, split.out(1), split.out(2))

    def check(self, rope_q: ir.Node, rope_k: ir.Node, positions: ir.Value) -> None:
        _require_one_rope(rope_q, rope_k, positions)

    def rewrite(
        self, g: Builder, qkv: ir.Value, cache: Rest, rope_q: ir.Node, attention: ir.Node
    ) -> Sequence[ir.Value]:
        return _rope_attention(g, qkv, cache, rope_q, attention)


class FuseNormedRopeAttention(Rule):
    """The same where each head of q and of k is normed before rope."""

    fires = (_NORMED, _NORMED.replace("CachedAttention<", "CachedAttention:windowed<window=2, "))
    refuses = {"the norms have different epsilons": _NORMED.replace("epsilon=0.001>(k", "epsilon=0.002>(k")}

    @staticmethod
    def pattern(p: Patterns) -> tuple[Op, ...]:
        split = p.Split("qkv", "sizes?")
        q = p.llmc.HeadNorm(split, "q_norm").named("norm_q")
        return _attention(p, q, p.llmc.HeadNorm(split.out(1), "k_norm").named("norm_k"), split.out(2))

    def check(self, rope_q: ir.Node, rope_k: ir.Node, positions: ir.Value, norm_q: ir.Node, norm_k: ir.Node) -> None:
        _require_one_rope(rope_q, rope_k, positions)
        same = attribute(norm_q, "epsilon") == attribute(norm_k, "epsilon")
        require(same, "the norms have different epsilons")

    def rewrite(
        self,
        g: Builder,
        qkv: ir.Value,
        cache: Rest,
        rope_q: ir.Node,
        attention: ir.Node,
        q_norm: ir.Value,
        k_norm: ir.Value,
        norm_q: ir.Node,
    ) -> Sequence[ir.Value]:
        epsilon = attribute(norm_q, "epsilon")
        return _rope_attention(g, qkv, cache, rope_q, attention, q_norm, k_norm, epsilon=epsilon)


class QuantizeActivations(Rule):
    """Quantizes the activations of quantized linears to E4M3, so large steps use FP8 tensor cores; not for the head."""

    overload: ClassVar[str] = ""
    """Of the operator; the weights' format where both sides must have one (`fp4.py`)."""
    tolerance = 5e-2
    fires = (
        "(float[2,3,64] x, uint8[4,64] W, float[4] S) => (float[2,3,4] h) { y = llmc.Linear:fp8(x, W, S) h = Relu(y) }",
        "(float[2,3,64] x, uint8[4,32] W, float[4,2] S, float[4] B) => (float[2,3,4] h) "
        "{ y = llmc.Linear:int4_bias(x, W, S, B) h = Relu(y) }",
    )
    refuses = {
        "the weight is not quantized": (
            "(float[2,3,64] x, float[4,64] W) => (float[2,3,4] h) { y = llmc.Linear:f32(x, W) h = Relu(y) }"
        ),
        "these are the logits": (
            "(float[2,3,64] x, uint8[4,64] W, float[4] S) => (float[2,3,4] y) { y = llmc.Linear:fp8(x, W, S) }"
        ),
    }

    @staticmethod
    def pattern(p: Patterns) -> Op:
        return p.llmc.Linear("x", "*weights").named("linear")

    def check(self, x: ir.Value, linear: ir.Node) -> None:
        found = ops.format_of(linear)
        require(found != ops.DENSE, "the weight is not quantized")
        require(self.overload in ("", found), f"the weight is not {self.overload}")
        require(not ops.makes_logits(linear), "these are the logits")
        producer = x.producer()
        require(producer is None or producer.op_type != "QuantizeActivations", "the activations are quantized")

    def rewrite(self, g: Builder, x: ir.Value, weights: Rest, linear: ir.Node) -> ir.Value:
        quantized = g.llmc("QuantizeActivations", x, overload=self.overload)
        module = linear.metadata_props.get(MODULE, "")
        return g.llmc("Linear", quantized, *weights, overload=linear.overload, name=module)


class RefuseOthers(Pass):
    """Refuses operators that no launch computes, by name, before any kernel is compiled."""

    def run(self, graph: Graph) -> Outcome:
        for node in graph.nodes:
            merged = node.op_type != "GatedActivation" or len(node.inputs) == 1
            summed = node.op_type != "Split" or all(
                user.op_type in ("Add", "Send") for one in node.outputs for user, _ in one.uses()
            )
            if (node.domain, node.op_type) not in LEGAL or not merged or not summed:
                raise Unsupported(
                    f"cannot compute {node.op_type} ({node.outputs[0].name}) on a GPU",
                    found="q, k and v, or gate and up, that could not become one linear",
                    fix="one weight format for all of them, with --target cpu for the engine as it is",
                )
        return Outcome()


PASSES: tuple[Pass, ...] = (FuseNormedRopeAttention(), FuseRopeAttention(), Simplify(), RefuseOthers())
