"""What nvfp4 and mxfp4 share: rounding to E2M1, packing two codes to a byte, and the ONNX text that unpacks them."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np
import torch

from ...runtime.numbers import E2M1
from ..chunks import each_chunk, result
from ..format import UNPACK_PAIRS, bit_types, largest, nibble_pairs, pack_pairs

PAIRS = nibble_pairs(E2M1)

DENSE_CODES = (
    UNPACK_PAIRS
    + """
e2m1_values = Constant <value = float[16] {0, 0.5, 1, 1.5, 2, 3, 4, 6, 0, -0.5, -1, -1.5, -2, -3, -4, -6}> ()
code_index = Cast <to = 6> (codes)
numbers = Gather (e2m1_values, code_index)
"""
)
"""ONNX text: `weight` u8 [N, K/2] -> `numbers` f32 [N, K]; it also defines `last_axis` and `rows_by_rest`."""


def encode_blocks(w: torch.Tensor, block: int, scale_of: Callable[[torch.Tensor, slice], torch.Tensor]) -> np.ndarray:
    """The E2M1 codes u8 [rows, K/2] of w [rows, K], the even k in the low nibble.

    `scale_of(amax, part)` takes the largest magnitudes f32 [m] of the blocks `part`, stores their scales, and returns
    TWICE the scales' values, f32 [m]. A weight gets the nearest code, ties to even, saturating at 6; the code has the
    weight's sign bit, so a small negative weight becomes -0.

    The rounding: with a = |w|/scale, the code is round(min(2a, a + 2, a/2 + 4, 7)). These lines meet where the spacing
    of E2M1 doubles, and they map its midpoints to halves. Each line is rounded where it is exact: 2a directly, the
    other two as a leaky ReLU (slope 2 below zero) of a/2 - 2, which is exact from a = 2 on. Weights have 8 bits, so
    quotients one ulp off a midpoint are common: a nearly exact rounding differs from ModelOpt's in 2 of 10,000 codes.
    """
    rows, k = w.shape
    array, codes = result((rows, k // 2), np.uint8)
    x, y = w.view(-1, block), codes.view(-1, block // 2)

    def worker(slices: Iterator[slice], most: int) -> None:
        values, doubled = torch.empty(most, block), torch.empty(most, block)
        words = torch.empty(most, block, dtype=bit_types()[w.dtype])
        small = torch.empty(most, block, dtype=torch.int8)
        other = torch.empty(most, block, dtype=torch.int8)
        pairs = torch.empty(most * block // 2, dtype=torch.int16)
        for part in slices:
            m = part.stop - part.start
            a, bits, c = values[:m], words[:m], small[:m]
            scale = scale_of(largest(x[part], bits), part)
            torch.mul(a.copy_(bits.view(x.dtype)).div_(scale.view(-1, 1)), 4.0, out=doubled[:m])
            c.copy_(torch.nn.functional.leaky_relu_(a.sub_(2.0), 2.0).round_()).add_(6)
            torch.minimum(c, other[:m].copy_(doubled[:m].round_()), out=c).clamp_(max=7)
            torch.bitwise_right_shift(x[part].view(bits.dtype), 8 * bits.element_size() - 4, out=bits)
            c.bitwise_or_(other[:m].copy_(bits).bitwise_and_(8))
            pack_pairs(c.view(-1), pairs[: m * block // 2], y[part].view(-1))

    each_chunk(len(x), block, worker)
    return array
