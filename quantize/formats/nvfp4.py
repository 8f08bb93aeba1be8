"""nvfp4: E2M1 weights, an E4M3 scale per 16 and one float32 scale per tensor; the arithmetic of NVIDIA ModelOpt.

The largest magnitude of the tensor becomes 6 * 448 and that of a block 6. Two cases differ in bytes from ModelOpt's
export: a weight of exactly -0 keeps its sign (code 8, also zero), and a tensor of zeros stores the smallest scale
instead of zero. The error bound holds for blocks of at least 2^-15 of the tensor's largest magnitude; for smaller
blocks, whose scale is a subnormal E4M3 number, it is relative to that magnitude.
"""

from __future__ import annotations

import numpy as np
import torch

from ...runtime.numbers import E4M3
from ..format import SMALLEST_SCALE, Format, Layout, Parts, decode_blocks, scaled_blocks
from .e2m1 import DENSE_CODES, PAIRS, encode_blocks
from .fp8 import E4M3_TEXT

BLOCK = 16


def _encode(w: torch.Tensor, amax: float) -> dict[str, np.ndarray]:
    rows, k = w.shape
    scales = torch.empty(rows, k // BLOCK, dtype=torch.float8_e4m3fn)
    stored = scales.view(-1)
    tensor_scale = max(np.float32(amax) / np.float32(6 * 448), np.float32(SMALLEST_SCALE))
    largest_scale = float(np.float32(6) * tensor_scale)

    def scale_of(block_amax: torch.Tensor, part: slice) -> torch.Tensor:
        if float(block_amax.amax()) > amax:
            raise ValueError(
                f"amax {amax} is not the group's largest magnitude: a block has {float(block_amax.amax())}"
            )
        ratio = block_amax.div_(largest_scale)
        ratio.masked_fill_(ratio == 0, 1.0).clamp_(2.0**-9, 448.0)
        stored[part] = ratio
        return stored[part].float().mul_(float(tensor_scale)).mul_(2.0)

    codes = encode_blocks(w, BLOCK, scale_of)
    return {
        "weight": codes,
        "weight_scale": scales.view(torch.uint8).numpy(),
        "weight_scale_2": np.array(tensor_scale, dtype=np.float32),
    }


def _decode(parts: Parts) -> np.ndarray:
    scales = E4M3[parts["weight_scale"]] * np.float32(parts["weight_scale_2"])
    return decode_blocks(parts["weight"], scales, PAIRS)


NVFP4 = Format(
    name="nvfp4",
    summary="4-bit E2M1, an E4M3 scale per 16 weights, a float32 scale per tensor",
    block=BLOCK,
    layouts=(
        Layout("weight", "U8", "nk", 2),
        Layout("weight_scale", "F8_E4M3", "nk", BLOCK),
        Layout("weight_scale_2", "F32", ""),
    ),
    error_bound=17 / 16 / 6 + 2**-10,  # half of the step from 4 to 6, with a scale rounded up by at most 1/16
    body=DENSE_CODES
    + E4M3_TEXT.replace("%BITS%", "weight_scale")
    + "whole_scale = Mul (e4m3_numbers, weight_scale_2)"
    + scaled_blocks(BLOCK, "whole_scale"),
    encode=_encode,
    decode=_decode,
    shares_scale=True,
)
