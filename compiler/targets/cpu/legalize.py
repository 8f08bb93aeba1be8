"""Logical operators to ONNX Runtime's CPU kernels: one rule per operator, fp32 activations."""

from __future__ import annotations

from collections.abc import Sequence

import onnx_ir as ir

from ....passes.graph import ops
from ....passes.graph.graph import Builder, attribute, width
from ....passes.graph.pointwise import RELU2, XIELU
from ....passes.rewrite.pattern import Op, Patterns, Rest, require
from ....passes.rewrite.rule import Pass, Rule
from .attention import ATTENTION_RULES
from .elementwise import activated
from .embedding import EmbeddingToGather
from .experts import MoEToProducts, MoEToQMoE, RouteToKernels
from .latent import LatentToGroupQuery, RefuseLatents
from .nbits import NBITS, dequantized, exprs_of, nbits_product


class LinearToNbits(Rule):
    """A quantized linear becomes MatMulNBits with int8 activations."""

    tolerance = 1e-2
    fires = (
        "(float[2,3,64] x, uint8[4,32] W, float[4,2] S) => (float[2,3,4] y) { y = llmc.Linear:int4(x, W, S) }",
        "(float[2,3,128] x, uint8[4,128] W, float[4,1] S, float[4] B) => (float[2,3,4] y) "
        "{ y = llmc.Linear:int8_g128_bias(x, W, S, B) }",
        "(float[2,3,64] x, uint8[4,32] W, uint8[4,4] S, float G) => (float[2,3,4] y) "
        "{ y = llmc.Linear:nvfp4(x, W, S, G) }",
        "(float[2,3,64] x, uint8[4,32] W, uint8[4,2] S) => (float[2,3,4] y) { y = llmc.Linear:mxfp4(x, W, S) }",
    )
    refuses = {
        "the format has no MatMulNBits layout": (
            "(float[2,3,64] x, float[4,64] W) => (float[2,3,4] y) { y = llmc.Linear:f32(x, W) }"
        )
    }

    @staticmethod
    def pattern(p: Patterns) -> Op:
        return p.llmc.Linear("x", "weight", "*others").named("linear")

    def check(self, linear: ir.Node) -> None:
        require(ops.format_of(linear) in NBITS, "the format has no MatMulNBits layout")

    def rewrite(self, g: Builder, x: ir.Value, weight: ir.Value, others: Rest, linear: ir.Node) -> ir.Value:
        fmt, bias = ops.format_of(linear), others[-1] if ops.has_bias(linear) else None
        values = (weight, *(others if bias is None else others[:-1]))
        return nbits_product(g, x, str(weight.name), fmt, exprs_of(g.graph, values), bias)


class LinearToMatMul(Rule):
    """A dense or fp8 linear becomes a float32 product with the weight in its stored order, ``[N, K]``."""

    fires = (
        "(float[2,3,64] x, float[4,64] W) => (float[2,3,4] y) { y = llmc.Linear:f32(x, W) }",
        "(float[2,3,64] x, float[4,64] W, float[4] B) => (float[2,3,4] y) { y = llmc.Linear:f32_bias(x, W, B) }",
        "(float[2,3,64] x, uint8[4,64] W, float[4] S) => (float[2,3,4] y) { y = llmc.Linear:fp8(x, W, S) }",
    )
    refuses = {
        "the format has no float32 form": (
            "(float[2,3,64] x, uint8[4,32] W, float[4,2] S) => (float[2,3,4] y) { y = llmc.Linear:int4(x, W, S) }"
        )
    }

    @staticmethod
    def pattern(p: Patterns) -> Op:
        return p.llmc.Linear("x", "weight", "*others").named("linear")

    def check(self, linear: ir.Node) -> None:
        require(ops.format_of(linear) in (ops.DENSE, "fp8"), "the format has no float32 form")

    def rewrite(self, g: Builder, x: ir.Value, weight: ir.Value, others: Rest, linear: ir.Node) -> ir.Value:
        weight = dequantized(g, ops.format_of(linear), weight, others)
        product = g.ms("FusedMatMul", x, weight, transA=0, transB=1)
        if not ops.has_bias(linear):
            return product
        product.type = linear.outputs[0].type
        return g("Add", product, others[-1])


class AddNormToSkipNorm(Rule):
    """AddRMSNorm becomes SkipSimplifiedLayerNormalization, whose fourth result is the sum."""

    fires = (
        "(float[2,3,4] x, float[2,3,4] r, float[4] W) => (float[2,3,4] y, float[2,3,4] s) "
        "{ y, s = llmc.AddRMSNorm<epsilon=0.00001>(x, r, W) }",
    )

    @staticmethod
    def pattern(p: Patterns) -> tuple[Op, ...]:
        root = p.llmc.AddRMSNorm("x", "r", "weight").named("norm")
        return root, root.out(1)

    def rewrite(self, g: Builder, x: ir.Value, r: ir.Value, weight: ir.Value, norm: ir.Node) -> Sequence[ir.Value]:
        normed, mean, deviation, total = g.ms(
            "SkipSimplifiedLayerNormalization", x, r, weight, outputs=4, epsilon=attribute(norm, "epsilon")
        )
        mean.name = deviation.name = ""
        return normed, total


class NormToSimplified(Rule):
    """RMSNormalization over the last axis becomes ONNX Runtime's SimplifiedLayerNormalization."""

    fires = ("(float[2,3,4] x, float[4] W) => (float[2,3,4] y) { y = RMSNormalization<axis=-1, epsilon=0.001>(x, W) }",)
    refuses = {
        "the norm is not over the last axis": (
            "(float[2,3,4] x, float[3,4] W) => (float[2,3,4] y) { y = RMSNormalization<axis=1>(x, W) }"
        )
    }

    @staticmethod
    def pattern(p: Patterns) -> Op:
        return p.RMSNormalization("x", "weight").named("norm")

    def check(self, norm: ir.Node) -> None:
        require(attribute(norm, "axis", -1) == -1, "the norm is not over the last axis")

    def rewrite(self, g: Builder, x: ir.Value, weight: ir.Value, norm: ir.Node) -> ir.Value:
        epsilon = attribute(norm, "epsilon", 1e-5)
        return g("SimplifiedLayerNormalization", x, weight, axis=-1, epsilon=epsilon, stash_type=1)


class GatedToElementwise(Rule):
    """A gated activation becomes its activation and a product; SiLU is QuickGelu with slope 1."""

    fires = (
        "(float[2,3,8] x) => (float[2,3,4] y) { y = llmc.GatedActivation:merged_silu(x) }",
        "(float[2,3,4] g, float[2,3,4] u) => (float[2,3,4] y) "
        "{ y = llmc.GatedActivation:pair_gelu_pytorch_tanh(g, u) }",
    )

    @staticmethod
    def pattern(p: Patterns) -> Op:
        return p.llmc.GatedActivation("x", "up?").named("gated")

    def rewrite(self, g: Builder, x: ir.Value, up: ir.Value | None, gated: ir.Node) -> ir.Value:
        activation, halves = gated.overload.partition("_")[2], (x, up)
        if up is None:
            halves = g("Split", x, axis=-1, num_outputs=2, outputs=2)
            for value in halves:
                value.type, value.shape = gated.outputs[0].type, gated.outputs[0].shape
        return g("Mul", activated(g, activation, halves[0]), halves[1])


class SwishToQuickGelu(Rule):
    """SiLU outside a gated activation becomes QuickGelu with slope 1."""

    fires = ("(float[2,3,4] x) => (float[2,3,4] y) { y = Swish(x) }",)
    refuses = {
        "Swish has another slope than 1": "(float[2,3,4] x) => (float[2,3,4] y) { y = Swish<alpha=2.0>(x) }",
    }

    @staticmethod
    def pattern(p: Patterns) -> Op:
        return p.Swish("x").named("swish")

    def check(self, swish: ir.Node) -> None:
        require(attribute(swish, "alpha", 1.0) == 1.0, "Swish has another slope than 1")

    def rewrite(self, g: Builder, x: ir.Value) -> ir.Value:
        return activated(g, "silu", x)


class ScaleToMul(Rule):
    """A factor becomes a product with a constant."""

    fires = ("(float[2,3,4] x) => (float[2,3,4] y) { y = llmc.Scale<factor=0.5>(x) }",)

    @staticmethod
    def pattern(p: Patterns) -> Op:
        return p.llmc.Scale("x").named("scale")

    def rewrite(self, g: Builder, x: ir.Value, scale: ir.Node) -> ir.Value:
        return g("Mul", x, g("Constant", value_float=attribute(scale, "factor")))


class SoftcapToTanh(Rule):
    """A cap becomes a tanh between two products."""

    fires = ("(float[2,3,4] x) => (float[2,3,4] y) { y = llmc.Softcap<cap=2.0>(x) }",)

    @staticmethod
    def pattern(p: Patterns) -> Op:
        return p.llmc.Softcap("x").named("softcap")

    def rewrite(self, g: Builder, x: ir.Value, softcap: ir.Node) -> ir.Value:
        cap = g("Constant", value_float=attribute(softcap, "cap"))
        bent = g("Tanh", g("Div", x, cap))
        bent.type, bent.shape = x.type, x.shape
        return g("Mul", bent, cap)


class ActivationToElementwise(Rule):
    """An activation without a gate becomes operators of ONNX."""

    fires = (
        "(float[2,3,4] x) => (float[2,3,4] y) { y = llmc.Activation:relu2(x) }",
        "(float[2,3,4] x) => (float[2,3,4] y) { y = llmc.Activation:gelu_pytorch_tanh(x) }",
        "(float[2,3,4] x, float[1] P, float[1] N, float B, float E) => (float[2,3,4] y) "
        "{ y = llmc.Activation:xielu(x, P, N, B, E) }",
    )

    @staticmethod
    def pattern(p: Patterns) -> Op:
        return p.llmc.Activation("x", "*parameters").named("activation")

    def rewrite(self, g: Builder, x: ir.Value, parameters: Rest, activation: ir.Node) -> ir.Value:
        if activation.overload == RELU2:
            positive = g("Relu", x)
            return g("Mul", positive, positive)
        return _xielu(g, x, *parameters) if activation.overload == XIELU else activated(g, activation.overload, x)


def _xielu(
    g: Builder,
    x: ir.Value,
    alpha_p: ir.Value | None,
    alpha_n: ir.Value | None,
    beta: ir.Value | None,
    eps: ir.Value | None,
) -> ir.Value:
    """As `passes/graph/pointwise.py` defines it."""
    n = g("Add", beta, g("Softplus", alpha_n))
    slope = g("Mul", x, beta)
    above = g("Mul", g("Mul", x, x), g("Softplus", alpha_p))
    below = g("Mul", g("Sub", g("Sub", g("Exp", g("Min", x, eps)), g("Constant", value_float=1.0)), x), n)
    positive = g("Greater", x, g("Constant", value_float=0.0))
    return g("Add", g("Where", positive, above, below), slope)


class SelectRowsToGather(Rule):
    """SelectRows becomes Gather over the flattened tokens."""

    fires = ("(float[2,3,4] x, int64[2] rows) => (float[2,4] y) { y = llmc.SelectRows(x, rows) }",)

    @staticmethod
    def pattern(p: Patterns) -> Op:
        return p.llmc.SelectRows("x", "rows")

    def rewrite(self, g: Builder, x: ir.Value, rows: ir.Value) -> ir.Value:
        return g("Gather", g("Reshape", x, g.ints(-1, width(x))), rows, axis=0)


RULES: tuple[Pass, ...] = (
    LatentToGroupQuery(),
    RefuseLatents(),
    *ATTENTION_RULES,
    EmbeddingToGather(),
    LinearToNbits(),
    LinearToMatMul(),
    RouteToKernels(),
    MoEToQMoE(),
    MoEToProducts(),
    AddNormToSkipNorm(),
    NormToSimplified(),
    GatedToElementwise(),
    SwishToQuickGelu(),
    ScaleToMul(),
    SoftcapToTanh(),
    ActivationToElementwise(),
    SelectRowsToGather(),
)
