"""What a linear computes for the launches around it: a norm costs no launch, and activations are put in order once.

RMSNorm is (x * weight) / rms(x), and a product is linear: (x * weight) @ W / rms(x). So the linear before a norm adds
the residual, multiplies by the norm's weight, and leaves sums of squares; the linear after it divides its own sums.
"""

# Triton's type stubs reject plain numbers as constexprs, and its loops.
# pyright: reportArgumentType=false, reportGeneralTypeIssues=false, reportAssignmentType=false

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import triton
import triton.language as tl

from ....call import Constant, Operand
from ..dequantize import stored_column

SQUARES = 32
"""Columns whose squares are added to one number: every tile of a linear has a multiple of them."""

OPERANDS = ("x_squares", "norm_weight", "normed", "squares")
"""The fields of `Fused` that are tensors, and parameters of the linears."""


@dataclass(frozen=True)
class Fused:
    """The neighbours of a linear x [tokens, K] -> y [tokens, N]."""

    ordered: bool = False
    """True if x lies in the order of `stored_column` for the linear's format."""
    x_squares: Operand | None = None
    """f32 [cdiv(K, 32), tokens]: if given, x is a product with a norm's weight, and the norm's division is due."""
    epsilon: float = 0.0
    """Of that norm."""
    order: int = 0
    """The order in which an activation's result, or `normed`, is stored: weights in a word of the linears it is for."""
    norm_weight: Operand | None = None
    """The weight [N] of the norm of y, of which the division is left to its readers."""
    normed: Operand | None = None
    """y * norm_weight [tokens, N]."""
    squares: Operand | None = None
    """Sums of the squares of y, f32 [cdiv(N, 32), tokens]."""

    @staticmethod
    def of(operands: Mapping[str, Operand], constants: Mapping[str, Any]) -> Fused:
        """The neighbours of a launch with these operands and constants by parameter."""
        given = {name: operands.get(name) for name in OPERANDS}
        return Fused(ordered=constants["ORDERED"], epsilon=constants["EPSILON"], order=constants["ORDER"], **given)

    @property
    def operands(self) -> dict[str, Operand | None]:
        return {name: getattr(self, name) for name in OPERANDS}

    @property
    def constants(self) -> dict[str, Constant]:
        return {"ORDERED": self.ordered, "EPSILON": self.epsilon, "ORDER": self.order}


ALONE = Fused()


@triton.jit
def divided(acc, x_squares, token, tokens, K: tl.constexpr, EPSILON: tl.constexpr, BLOCK_M: tl.constexpr):
    """Sums [rows, tokens] over the root mean square of each token's x; see `Fused.x_squares`."""
    PARTS: tl.constexpr = (K + 31) // 32
    SOME: tl.constexpr = max(2048 // BLOCK_M, 1)
    read = tl.minimum(token, tokens - 1)
    total = tl.zeros([BLOCK_M], tl.float32)
    for first in range(0, PARTS, SOME):
        part = first + tl.arange(0, SOME)
        address = part.to(tl.int64)[:, None] * tokens + read[None, :]
        total += tl.sum(tl.load(x_squares + address, part[:, None] < PARTS, 0.0), axis=0)
    return acc * tl.rsqrt(total / K + EPSILON)[None, :]


@triton.jit
def leave_normed(
    number,
    block,
    row,
    token,
    inside,
    norm_weight,
    normed,
    squares,
    tokens,
    N: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_M: tl.constexpr,
    ORDER: tl.constexpr,
):
    """Store y * norm_weight of a tile of y (`number` [rows, tokens], f32), and the sums of its squares."""
    weight = tl.load(norm_weight + row, row < N, 0.0).to(tl.float32)
    address = token[None, :].to(tl.int64) * N + stored_column(row, ORDER)[:, None]
    tl.store(normed + address, (number * weight[:, None]).to(normed.dtype.element_ty), inside)
    square = tl.where(inside, number * number, 0.0)
    sums = tl.sum(tl.reshape(square, [BLOCK_N // 32, 32, BLOCK_M]), axis=1)
    part = block * (BLOCK_N // 32) + tl.arange(0, BLOCK_N // 32)
    real = (part[:, None] * 32 < N) & (token[None, :] < tokens)
    tl.store(squares + part.to(tl.int64)[:, None] * tokens + token[None, :], sums, real)
