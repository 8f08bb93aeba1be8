"""How the weight formats lie in the operands of ONNX Runtime's CPU kernels."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import onnx_ir as ir

from ....passes.graph import ops
from ....passes.graph.graph import Builder, Graph
from ....passes.rewrite.pattern import Rest
from ....runtime.engine_file.bind import E2M1ToNbits8, Expr, Reshape, Times, ToF32


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


def nbits_weights(graph: Graph, fmt: str, values: Rest) -> tuple[Expr, Expr]:
    """Codes ``u8 [N, K]`` or ``u8 [N, K/2]`` and scales ``f32 [N, K/block]`` of a quantized weight."""
    return nbits_of(fmt, [expr for value in values if (expr := graph.expr(value)) is not None])


def nbits_of(fmt: str, components: Sequence[Expr]) -> tuple[Expr, Expr]:
    """The same of the components of a weight, or of a stack of weights, whose codes are ``u8 [E, N, ...]``."""
    codes, scale, *others = components
    if not NBITS[fmt].doubled:
        return codes, scale
    halved: Expr = ToF32(scale, 0.5)
    for one in others:
        halved = Times(halved, one if one.shape else Reshape(one, (1,)))
    return E2M1ToNbits8(codes), halved


def dequantized(g: Builder, fmt: str, weight: ir.Value, others: Rest) -> ir.Value:
    """A dense or fp8 weight as an input ``f32 [N, K]``."""
    if fmt == ops.DENSE:
        return weight
    codes, scale = g.graph.expr(weight), g.graph.expr(others[0])
    assert codes is not None and scale is not None
    return g.graph.weight(f"{weight.name}.f32", Times(ToF32(codes), scale))
