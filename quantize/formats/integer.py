"""What int4 and int8 share: symmetric integers with a bfloat16 scale per block, rounded to nearest.

The scale is the block's extreme weight (with its sign) over -2^(bits-1), so the extreme is stored almost exactly and
all codes are used. Scales may be negative; kernels only multiply by them. Measured on the linear weights of the bundled
pico-python (relative RMS error, block 32 and 128):

    scale                 int4                int8
    extreme / -2^(b-1)    0.0862   0.1040     0.00533   0.00647
    amax / (2^(b-1)-0.5)  0.0950   0.1116     0.00545   0.00653
    amax / (2^(b-1)-1)    0.0973   0.1183     0.00540   0.00653

This raises the largest error: a weight as large as the extreme and of opposite sign is off by one whole step.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch

from ...runtime.numbers import bf16_to_f32
from ..chunks import each_chunk, result
from ..format import (
    SMALLEST_SCALE,
    UNPACK_PAIRS,
    Format,
    Layout,
    Parts,
    decode_blocks,
    nibble_pairs,
    non_finite,
    pack_pairs,
    scaled_blocks,
)

_KEEP = """
last_axis = Constant <value = int64[1] {-1}> ()
rows_by_rest = Constant <value = int64[2] {0, -1}> ()
codes = Identity (weight)
"""
_SIGNED = """
zero_point = Constant <value = float {%ZERO%}> ()
unsigned = Cast <to = 1> (codes)
numbers = Sub (unsigned, zero_point)
"""


def integer_format(name: str, bits: int, block: int) -> Format:
    """Signed integers of 4 or 8 bits, stored as code + 2^(bits-1); scales bf16 [N, K/block]."""
    half = 1 << (bits - 1)
    per_byte = 8 // bits
    numbers = np.arange(1 << bits, dtype=np.float32) - half
    table = nibble_pairs(numbers) if bits == 4 else numbers

    def encode(w: torch.Tensor, amax: float) -> dict[str, np.ndarray]:
        rows, k = w.shape
        array, codes = result((rows, k // per_byte), np.uint8)
        scales = torch.empty(rows, k // block, dtype=torch.bfloat16)
        x, y, s = w.view(-1, block), codes.view(-1, block // per_byte), scales.view(-1)

        def worker(slices: Iterator[slice], most: int) -> None:
            values = torch.empty(most, block)
            small = torch.empty(most, block, dtype=torch.int8)
            pairs = torch.empty(most * block // 2, dtype=torch.int16)
            for part in slices:
                m = part.stop - part.start
                v, c = values[:m], small[:m]
                v.copy_(x[part])
                high, low = v.amax(1), v.amin(1)
                scale = torch.where(high >= -low, high, low).div_(-half).bfloat16()
                if not float(scale.abs().amax()) < float("inf"):
                    raise non_finite("weight")
                scale.masked_fill_(scale.abs() < SMALLEST_SCALE, SMALLEST_SCALE)
                s[part] = scale
                c.copy_(v.div_(scale.float().view(-1, 1)).round_().clamp_(max=half - 1))
                if bits == 4:
                    pack_pairs(c.add_(half).view(-1), pairs[: m * block // 2], y[part].view(-1))
                else:  # adding 128 to a two's complement byte flips its first bit
                    torch.bitwise_xor(c.view(torch.uint8), 0x80, out=y[part])

        each_chunk(len(x), block, worker)
        return {"weight": array, "weight_scale": scales.view(torch.int16).numpy().view(np.uint16)}

    def decode(parts: Parts) -> np.ndarray:
        return decode_blocks(parts["weight"], bf16_to_f32(parts["weight_scale"]), table)

    return Format(
        name=name,
        summary=f"{bits}-bit integers, symmetric, a bf16 scale per {block} weights",
        block=block,
        layouts=(Layout("weight", "U8", "nk", per_byte), Layout("weight_scale", "BF16", "nk", block)),
        error_bound=1 / half + 2**-9,  # one step at the clipped end, plus the rounding of the scale
        body=(UNPACK_PAIRS if bits == 4 else _KEEP)
        + _SIGNED.replace("%ZERO%", f"{half}.0")
        + scaled_blocks(block, "weight_scale"),
        encode=encode,
        decode=decode,
    )
