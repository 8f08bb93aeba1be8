"""Mixtures of experts on the CPU: one QMoE where ONNX Runtime has it, else a product for each expert.

Both compute the chosen experts only, and both are flat graphs. Measured (`benchmarks/experts_cpu.py`: 4 layers of
Qwen3-30B-A3B and its head in int4, 2 cores, ONNX Runtime 1.31.1) in times of a dense model that reads the same bytes:
a token takes 0.99 with QMoE and 1.21 with products, a layer alone 1.18 and 1.78, a prompt of 256 tokens 1.05 and 1.16.
QMoE has two activations, and codes of 4 or 8 bits.
"""

from __future__ import annotations

import onnx_ir as ir

from ....passes.graph.experts import Mixture
from ....passes.graph.graph import Builder, Graph, attribute, width
from ....passes.rewrite.inline import inlined
from ....passes.rewrite.pattern import Op, Patterns, Rest, require
from ....passes.rewrite.rule import Rule
from ....runtime.dtypes import LIMITED
from ....runtime.engine_file.bind import Expr, Reshape, Slice, Stored, ToF32, as_f32, stored
from .elementwise import activated
from .nbits import ACCURACY_LEVEL, NBITS, dense_of, nbits_of, nbits_product

_SIZES = "(float[2,3,64] x, float[2,3,4] l, "
_ROUTE = "{ e, w = llmc.Route:softmax<k=2, factor=1.0>(l) y = llmc.MoE:"
_INT4 = "uint8[4,64,32] U, float[4,64,2] Us, uint8[4,64,16] D, float[4,64,1] Ds"
_DENSE = "float[4,64,64] U, float[4,64,32] D"


class RouteToKernels(Rule):
    """The choice of experts becomes the operators that define it."""

    fires = (
        "(float[2,3,4] x) => (int64[2,3,2] e, float[2,3,2] w) "
        "{ e, w = llmc.Route:softmax_normed<k=2, factor=1.0, least=0.0>(x) }",
        "(float[2,3,4] x, float[4] B) => (int64[2,3,2] e, float[2,3,2] w) "
        "{ e, w = llmc.Route:sigmoid_biased_grouped<k=2, factor=2.5, groups=2, kept=1, best=2>(x, B) }",
        "(float[2,3,4] x, float[4] S) => (int64[2,3,2] e, float[2,3,2] w) "
        "{ e, w = llmc.Route:softmax_normed_scaled<k=2, factor=1.0, least=0.0>(x, S) }",
        "(float[2,3,4] x) => (int64[2,3,2] e, float[2,3,2] w) { e, w = llmc.Route:sparsemixer<k=2, jitter=0.1>(x) }",
    )

    @staticmethod
    def pattern(p: Patterns) -> tuple[Op, ...]:
        root = p.llmc.Route("logits", "*others").named("route")
        return root, root.out(1)

    def rewrite(self, g: Builder, route: ir.Node) -> list[ir.Value]:
        return inlined(g, route)


class MoEToQMoE(Rule):
    """A mixture with codes of 4 or 8 bits and a gate of SiLU becomes QMoE, with int8 activations.

    Its own router only finds what was chosen: probabilities are 1 for a token's experts and 0 for the others. Weights
    come apart from them, because QMoE divides weights that it takes from probabilities by their sum.
    """

    tolerance = 2e-2
    fires = (
        _SIZES + _INT4 + ") => (float[2,3,64] y) " + _ROUTE + "int4__int4__silu(x, e, w, U, Us, D, Ds) }",
        _SIZES
        + "uint8[4,64,32] U, float[4,64,2] Us, float[4,64] Ub, uint8[4,64,16] D, float[4,64,1] Ds, float[4,64] Db) "
        "=> (float[2,3,64] y) "
        + _ROUTE
        + "int4__int4__limited__bias<alpha=1.7, limit=7.0>(x, e, w, U, Us, Ub, D, Ds, Db) }",
    )
    refuses = {
        "QMoE has no such weights": _SIZES
        + _DENSE
        + ") => (float[2,3,64] y) "
        + _ROUTE
        + "none__none__silu(x, e, w, U, D) }",
        "QMoE has no such activation": _SIZES
        + _INT4
        + ") => (float[2,3,64] y) "
        + _ROUTE
        + "int4__int4__gelu(x, e, w, U, Us, D, Ds) }",
        "QMoE computes as many experts on every rank": _SIZES
        + _INT4
        + ") => (float[2,3,64] y) "
        + _ROUTE
        + "int4__int4__silu__part<start=4>(x, e, w, U, Us, D, Ds) }",
        "QMoE does not scale inputs": _SIZES
        + _INT4
        + ") => (float[2,3,64] y) "
        + _ROUTE
        + "int4__int4__silu__input(x, e, w, U, Us, D, Ds) }",
    }

    @staticmethod
    def pattern(p: Patterns) -> Op:
        return p.llmc.MoE("x", "experts", "weights", "*others").named("moe")

    def check(self, moe: ir.Node) -> None:
        mixture = Mixture.of(moe.overload)
        blocks = {NBITS[one].block if one in NBITS else 0 for one in (mixture.up, mixture.down)}
        require(0 not in blocks and len(blocks) == 1, "QMoE has no such weights")
        require(mixture.activation in ("silu", LIMITED), "QMoE has no such activation")
        require(not mixture.part, "QMoE computes as many experts on every rank")
        require(not mixture.input, "QMoE does not scale inputs")

    def rewrite(
        self, g: Builder, x: ir.Value, experts: ir.Value, weights: ir.Value, others: Rest, moe: ir.Node
    ) -> ir.Value:
        mixture, k = Mixture.of(moe.overload), width(experts)
        up, down = _components(g.graph, moe)
        count = up["weight"].shape[0]
        flat = g("Reshape", experts, g.ints(-1, k))
        tokens = g("Shape", flat, start=0, end=1)
        none = g("Expand", g("Constant", value_float=0.0), g("Concat", tokens, g.ints(count), axis=0))
        ones = g("Expand", g("Constant", value_float=1.0), g("Shape", flat))
        chosen = g("ScatterElements", none, flat, ones, axis=1)
        shares = g("ScatterElements", none, flat, g("Reshape", weights, g.ints(-1, k)), axis=1)
        operands: list[ir.Value | None] = []
        for fmt, stack in ((mixture.up, up), (mixture.down, down)):
            codes, scale = nbits_of(fmt, [expr for name, expr in stack.items() if name != "bias"])
            operands += [
                g.graph.weight(f"{_stem(stack)}.nbits", codes),
                g.graph.weight(f"{_stem(stack)}.scales", scale),
            ]
            operands.append(g.graph.weight(f"{_stem(stack)}.bias", as_f32(stack["bias"])) if mixture.bias else None)
        limited = mixture.activation == LIMITED
        return g.ms(
            "QMoE",
            x,
            chosen,
            *operands,
            *(None,) * 6,
            shares,
            k=k,
            block_size=NBITS[mixture.up].block,
            expert_weight_bits=NBITS[mixture.up].bits,
            fc2_expert_weight_bits=NBITS[mixture.down].bits,
            activation_type="swiglu",
            swiglu_fusion=1,
            activation_alpha=attribute(moe, "alpha") if limited else 1.0,
            activation_beta=1.0 if limited else 0.0,
            normalize_routing_weights=0,
            accuracy_level=ACCURACY_LEVEL,
            **({"swiglu_limit": attribute(moe, "limit")} if limited else {}),
        )


class MoEToProducts(Rule):
    """A mixture becomes a product for each expert, over the rows of the tokens that chose it: mostly none."""

    tolerance = 2e-2
    fires = (
        _SIZES + _DENSE + ") => (float[2,3,64] y) " + _ROUTE + "none__none__silu(x, e, w, U, D) }",
        _SIZES + _INT4 + ") => (float[2,3,64] y) " + _ROUTE + "int4__int4__gelu__input(x, e, w, U, Us, D, Ds) }",
        _SIZES + _DENSE + ") => (float[2,3,64] y) " + _ROUTE + "none__none__silu__part<start=1>(x, e, w, U, D) }",
        _SIZES + "uint8[4,64,64] U, float[4,64] Us, float[4,64] Ub, uint8[4,64,32] D, float[4,64] Ds, float[4,64] Db) "
        "=> (float[2,3,64] y) "
        + _ROUTE
        + "fp8__fp8__limited__bias<alpha=1.7, limit=7.0>(x, e, w, U, Us, Ub, D, Ds, Db) }",
    )

    @staticmethod
    def pattern(p: Patterns) -> Op:
        return p.llmc.MoE("x", "experts", "weights", "*others").named("moe")

    def rewrite(
        self, g: Builder, x: ir.Value, experts: ir.Value, weights: ir.Value, others: Rest, moe: ir.Node
    ) -> ir.Value:
        mixture, k, hidden = Mixture.of(moe.overload), width(experts), width(x)
        up, down = _components(g.graph, moe)
        count = up["weight"].shape[0]
        flat = g("Reshape", experts, g.ints(-1))
        if mixture.part:  # experts of other ranks are one more, whose products are zeros
            moved = g("Sub", flat, g("Constant", value_int=attribute(moe, "start")))
            above = g("GreaterOrEqual", moved, g("Constant", value_int=0))
            mine = g("And", above, g("Less", moved, g("Constant", value_int=count)))
            flat = g("Where", mine, moved, g("Constant", value_int=count))
        bins = count + mixture.part
        hits = g("Equal", g("Unsqueeze", flat, g.ints(1)), g("Constant", value_ints=list(range(bins))))
        counts = g("ReduceSum", g("Cast", hits, to=int(ir.DataType.INT64)), g.ints(0), keepdims=0)
        total = g("Shape", flat)
        _, order = g("TopK", flat, total, axis=0, largest=0, outputs=2)
        _, back = g("TopK", order, total, axis=0, largest=0, outputs=2)
        token = g("Div", order, g("Constant", value_int=k))
        rows = g("Gather", g("Reshape", x, g.ints(-1, hidden)), token, axis=0)
        shares = g("Reshape", weights, g.ints(-1, 1))
        if mixture.input:
            rows = g("Mul", rows, g("Gather", shares, order, axis=0))
        pairs = self._products(g, rows, counts, mixture.up, up, part=mixture.part)
        halves = g("Split", g("Reshape", pairs, g.ints(0, -1, 2)), axis=-1, num_outputs=2, outputs=2)
        gate, above_it = (g("Squeeze", half, g.ints(-1)) for half in halves)
        made = self._products(g, _gated(g, moe, mixture, gate, above_it), counts, mixture.down, down, part=mixture.part)
        result = g("Gather", made, back, axis=0)
        if not mixture.input:
            result = g("Mul", result, shares)
        summed = g("ReduceSum", g("Reshape", result, g.ints(-1, k, hidden)), g.ints(1), keepdims=0)
        return g("Reshape", summed, g("Shape", x))

    @staticmethod
    def _products(
        g: Builder, rows: ir.Value, counts: ir.Value, fmt: str, stack: dict[str, Expr], *, part: bool
    ) -> ir.Value:
        """The rows of each expert times its weight, in the same order."""
        count, size = stack["weight"].shape[0], stack["weight"].shape[1]
        parts = g("Split", rows, counts, axis=0, outputs=count + part)
        parts = parts if isinstance(parts, tuple) else (parts,)
        made = [_linear(g, one, fmt, stack, expert) for expert, one in enumerate(parts[:count])]
        if part:
            height = g("Shape", parts[-1], start=0, end=1)
            made.append(g("Expand", g("Constant", value_float=0.0), g("Concat", height, g.ints(size), axis=0)))
        return g("Concat", *made, axis=0)


def _linear(g: Builder, x: ir.Value, fmt: str, stack: dict[str, Expr], expert: int) -> ir.Value:
    own = {name: _expert(expr, expert) for name, expr in stack.items()}
    stem = f"{_stem(stack)}.{expert}"
    bias = own.pop("bias", None)
    if fmt in NBITS:
        y = nbits_product(g, x, stem, fmt, [*own.values()])
    else:
        y = g.ms("FusedMatMul", x, g.graph.weight(f"{stem}.f32", dense_of([*own.values()])), transA=0, transB=1)
    return y if bias is None else g("Add", y, g.graph.weight(f"{stem}.bias", as_f32(bias)))


def _gated(g: Builder, moe: ir.Node, mixture: Mixture, gate: ir.Value, up: ir.Value) -> ir.Value:
    if mixture.activation == LIMITED:
        limit, alpha = (g("Constant", value_float=attribute(moe, name)) for name in ("limit", "alpha"))
        gate = g("Min", gate, limit)
        up = g("Max", g("Min", up, limit), g("Constant", value_float=-attribute(moe, "limit")))
        opened = g("Mul", gate, g("Sigmoid", g("Mul", gate, alpha)))
        return g("Mul", opened, g("Add", up, g("Constant", value_float=1.0)))
    return g("Mul", activated(g, mixture.activation, gate), up)


def _components(graph: Graph, moe: ir.Node) -> tuple[dict[str, Expr], dict[str, Expr]]:
    """The expressions of both stacks by component."""
    values = iter(moe.inputs[3:])
    up, down = (
        {name: expr for name in names if (expr := graph.expr(next(values))) is not None}
        for names in Mixture.of(moe.overload).weights()
    )
    return up, down


def _stem(stack: dict[str, Expr]) -> str:
    (tensor,) = stored(stack["weight"])
    return tensor.name


def _expert(expr: Expr, expert: int) -> Expr:
    """One expert's part of a stack [E, ...], a part of the file where the stack is one."""
    if isinstance(expr, ToF32):
        return ToF32(_expert(expr.of, expert), expr.factor)
    assert isinstance(expr, Stored | Slice)
    return Reshape(Slice(expr, 0, expert, expert + 1), expr.shape[1:])
