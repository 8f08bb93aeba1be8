"""Rewrites logical operators to those a launch plan computes: rope, cache and attention become one operator."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import ClassVar

import onnx_ir as ir

from ....passes.graph import ops
from ....passes.graph.graph import MODULE, Builder, Graph, width
from ....passes.rewrite.pattern import Op, Patterns, Rest, require
from ....passes.rewrite.rule import Outcome, Pass, Rule
from ....passes.simplify import Simplify
from ....runtime.errors import Unsupported
from . import fuse_latent
from .fuse_attention import FuseRopeAttention, is_attention, why_not

LEGAL = frozenset(
    [
        ("", op)
        for op in ("RMSNormalization", "LayerNormalization", "Add", "Mul", "Sigmoid", "Slice", "Split", "Constant")
    ]
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
            "RopeSharedAttention",
            "MergedLatentAttention",
            "FirstNorm",
            "PartNorm",
            "HeadNorm",
            "Scale",
            "Softcap",
            "Activation",
            "QuantizeActivations",
            "Route",
            "MoE",
        )
    ]
)


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
            if is_attention(node):
                raise _refused(node, why_not(graph, node))
            if fuse_latent.is_latent(node):
                raise _refused(node, fuse_latent.why_not(node))
        for node in graph.nodes:
            if (node.domain, node.op_type) not in LEGAL or not _FITS.get(node.op_type, lambda _: True)(node):
                raise _refused(node, _APART)
            if not _SCALES.get(node.op_type, lambda *_: True)(graph, node):
                raise _refused(node, "a product of two activations")
        return Outcome()


def _is_gate(opening: ir.Node | None) -> bool:
    """Whether this is the sigmoid of one number for each row."""
    return opening is not None and opening.op_type == "Sigmoid" and width(opening.outputs[0]) == 1


def _opens(graph: Graph, sigmoid: ir.Node) -> bool:
    return _is_gate(sigmoid) and all(user.op_type == "Mul" for user, _ in sigmoid.outputs[0].uses())


def _scales(graph: Graph, product: ir.Node) -> bool:
    """Whether one factor is stored, or a gate's."""
    return any(
        graph.expr(value) is not None or _is_gate(value.producer()) for value in product.inputs if value is not None
    )


_SCALES: Mapping[str, Callable[[Graph, ir.Node], bool]] = {"Mul": _scales, "Sigmoid": _opens}
"""Which products are computed, and what of them."""
_ONE = "could not become one linear"
_APART = f"q, k and v, or gate and up, that {_ONE}"
_FITS: Mapping[str, Callable[[ir.Node], bool]] = {
    "Split": lambda node: all(user.op_type in ("Add", "Send") for one in node.outputs for user, _ in one.uses()),
    "GatedActivation": lambda node: node.overload.startswith("merged_") == (len(node.inputs) == 1),
}


def _refused(node: ir.Node, found: str) -> Unsupported:
    return Unsupported(
        f"cannot compute {node.op_type} ({node.outputs[0].name}) on a GPU",
        found=found,
        fix="one weight format for all of them, with --target cpu for the engine as it is"
        if found.endswith(_ONE)
        else "--target cpu, which computes all that llmc reads",
    )


PASSES: tuple[Pass, ...] = (FuseRopeAttention(), fuse_latent.FuseLatentAttention(), Simplify(), RefuseOthers())
