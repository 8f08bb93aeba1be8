"""mxfp4: E2M1 weights with a power of two per 32, the OCP microscaling format.

The format does not specify a block's power of two, and tools differ. Here the scale puts the block's largest
magnitude into [3.625, 7.25), where E2M1 ends at 6: a smaller scale clips the largest weights, a larger one loses a bit
of resolution, and to switch at mantissa 1.8125 has the smallest error. Relative RMS error on the linear weights (and on
the embedding) of the bundled pico-python, by rule:

    ceil(log2(amax/6)), ModelOpt            0.11637   0.12133
    floor(log2(amax)) - 2, OCP              0.11571   0.11925
    round(log2(amax/6)), ORT-GenAI          0.12181   0.12529
    up from 1.75, compressed-tensors        0.11243   0.11646
    up from 1.8125, here                    0.11203   0.11582
    the better of two for every block       0.11197   0.11568   (twice the work)
"""

from __future__ import annotations

import numpy as np
import torch

from ...runtime.numbers import E8M0
from ..format import SMALLEST_SCALE, Format, Layout, Parts, decode_blocks, scaled_blocks
from .e2m1 import DENSE_CODES, PAIRS, encode_blocks

BLOCK = 32
ROUND_UP_FROM = 1.8125
"""The mantissa of a block's largest magnitude from which the scale is the next power of two."""
_CARRY = int((2 - ROUND_UP_FROM) * 2**23)
"""Added to the bits of a float32, carries into the exponent if the mantissa is at least ROUND_UP_FROM."""
_SMALLEST = int(np.log2(SMALLEST_SCALE)) + 127


def _encode(w: torch.Tensor, amax: float) -> dict[str, np.ndarray]:
    rows, k = w.shape
    scales = torch.empty(rows, k // BLOCK, dtype=torch.uint8)
    stored = scales.view(-1)

    def scale_of(block_amax: torch.Tensor, part: slice) -> torch.Tensor:
        exponent = block_amax.view(torch.int32).add_(_CARRY).bitwise_right_shift_(23).sub_(2).clamp_(min=_SMALLEST)
        stored[part] = exponent
        return exponent.add_(1).bitwise_left_shift_(23).view(torch.float32)

    return {"weight": encode_blocks(w, BLOCK, scale_of), "weight_scale": scales.numpy()}


def _decode(parts: Parts) -> np.ndarray:
    return decode_blocks(parts["weight"], E8M0[parts["weight_scale"]], PAIRS)


MXFP4 = Format(
    name="mxfp4",
    summary="4-bit E2M1, a power-of-two scale per 32 weights",
    block=BLOCK,
    layouts=(Layout("weight", "U8", "nk", 2), Layout("weight_scale", "F8_E8M0", "nk", BLOCK)),
    error_bound=1 / 5,  # the largest weight of a block at 5 becomes 4
    body=DENSE_CODES
    + """
e8m0_bias = Constant <value = float {127}> ()
two = Constant <value = float {2}> ()
biased = Cast <to = 1> (weight_scale)
exponent = Sub (biased, e8m0_bias)
scales = Pow (two, exponent)
"""
    + scaled_blocks(BLOCK, "scales"),
    encode=_encode,
    decode=_decode,
)
