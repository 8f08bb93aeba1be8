"""How the weight formats lie in the operands of ONNX Runtime's CPU kernels."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import onnx_ir as ir

from ....passes.graph import ops
from ....passes.graph.graph import Builder, Graph
from ....passes.rewrite.pattern import Rest
from ....runtime.engine_file.bind import E2M1ToNbits8, Expr, Reshape, Times, ToF32, as_f32

ACCURACY_LEVEL = 4
"""int8 activations; at level 1 the same kernels are many times slower for one token (docs/performance.md)."""


@dataclass(frozen=True)
class Nbits:
    """The layout of a format for MatMulNBits and GatherBlockQuantized: codes of `bits`, one scale per `block`."""

    bits: int
    block: int
    doubled: bool = False
    """True for E2M1 codes, stored exactly as 8-bit codes of twice the value."""

    @property
    def blob(self) -> int:
        return self.block * self.bits // 8


NBITS = {
    "int4": Nbits(4, 32),
    "int4-g128": Nbits(4, 128),
    "int8": Nbits(8, 32),
    "int8-g128": Nbits(8, 128),
    "nvfp4": Nbits(8, 16, doubled=True),
    "mxfp4": Nbits(8, 32, doubled=True),
}


def exprs_of(graph: Graph, values: Rest) -> list[Expr]:
    """The expressions of a weight's components."""
    return [expr for value in values if (expr := graph.expr(value)) is not None]


def nbits_weights(graph: Graph, fmt: str, values: Rest) -> tuple[Expr, Expr]:
    """Codes ``u8 [N, K]`` or ``u8 [N, K/2]`` and scales ``f32 [N, K/block]`` of a quantized weight."""
    return nbits_of(fmt, exprs_of(graph, values))


def nbits_of(fmt: str, components: Sequence[Expr]) -> tuple[Expr, Expr]:
    """The same of the components of a weight, or of a stack of weights, whose codes are ``u8 [E, N, ...]``."""
    codes, scale, *others = components
    if not NBITS[fmt].doubled:
        return codes, scale
    halved: Expr = ToF32(scale, 0.5)
    for one in others:
        halved = Times(halved, one if one.shape else Reshape(one, (1,)))
    return E2M1ToNbits8(codes), halved


def nbits_product(
    g: Builder, x: ir.Value, name: str, fmt: str, components: Sequence[Expr], bias: ir.Value | None = None
) -> ir.Value:
    """x Wᵀ + bias as MatMulNBits with int8 activations; `name` begins the names of its weights."""
    codes, scale = nbits_of(fmt, components)
    layout, (rows, blocks) = NBITS[fmt], scale.shape
    return g.ms(
        "MatMulNBits",
        x,
        g.graph.weight(f"{name}.nbits", Reshape(codes, (rows, blocks, layout.blob))),
        g.graph.weight(f"{name}.scales", scale),
        *((None, None, bias) if bias is not None else ()),
        N=rows,
        K=blocks * layout.block,
        bits=layout.bits,
        block_size=layout.block,
        accuracy_level=ACCURACY_LEVEL,
    )


def dense_of(components: Sequence[Expr]) -> Expr:
    """The numbers ``f32 [N, K]`` of a dense or fp8 weight."""
    codes, *scales = components
    return Times(ToF32(codes), scales[0]) if scales else as_f32(codes)


def dequantized(g: Builder, fmt: str, weight: ir.Value, others: Rest) -> ir.Value:
    """A dense or fp8 weight as an input ``f32 [N, K]``."""
    if fmt == ops.DENSE:
        return weight
    return g.graph.weight(f"{weight.name}.f32", dense_of(exprs_of(g.graph, (weight, others[0]))))
