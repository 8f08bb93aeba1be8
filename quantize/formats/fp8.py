"""fp8: E4M3 weights with a float32 scale per output channel; half the bytes of bf16, in a type that GPUs multiply.

scale[n] = max|W[n]| / 448, code = nearest E4M3 of W / scale (ties to even). ModelOpt's per-channel FP8 and
compressed-tensors' FP8_DYNAMIC have the same layout, except that the scale's shape here is [N].
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch

from ...runtime.numbers import E4M3
from ..chunks import each_chunk, result
from ..format import SMALLEST_SCALE, Format, Layout, Parts, bit_types, decode_blocks, largest

_TABLE = E4M3.copy()  # E4M3 is read-only, and torch warns about such arrays

E4M3_TEXT = f"""
e4m3_values = Constant <value = float[256] {{{", ".join(f"{v:.9g}" for v in E4M3)}}}> ()
e4m3_index = Cast <to = 6> (%BITS%)
e4m3_numbers = Gather (e4m3_values, e4m3_index)
"""
"""ONNX text: u8 bits named %BITS% -> `e4m3_numbers` f32, same shape."""


def _encode(w: torch.Tensor, amax: float) -> dict[str, np.ndarray]:
    rows, k = w.shape
    array, bits = result((rows, k), np.uint8)
    codes = bits.view(torch.float8_e4m3fn)
    scales = torch.empty(rows)

    def worker(slices: Iterator[slice], most: int) -> None:
        values = torch.empty(most, k)
        words = torch.empty(most, k, dtype=bit_types()[w.dtype])
        for part in slices:
            m = part.stop - part.start
            x, v = w[part], values[:m]
            scale = largest(x, words[:m]).div_(448.0).clamp_(min=SMALLEST_SCALE)
            scales[part] = scale
            codes[part] = v.copy_(x).div_(scale.view(-1, 1))

    each_chunk(rows, k, worker)
    return {"weight": array, "weight_scale": scales.numpy()}


def _decode(parts: Parts) -> np.ndarray:
    return decode_blocks(parts["weight"], parts["weight_scale"], _TABLE)


FP8 = Format(
    name="fp8",
    summary="8-bit E4M3, a float32 scale per output channel",
    block=None,
    layouts=(Layout("weight", "F8_E4M3", "nk"), Layout("weight_scale", "F32", "n")),
    error_bound=16 / 448 + 2**-20,  # half of the step between 416 and 448
    body=E4M3_TEXT.replace("%BITS%", "weight")
    + """
last_axis = Constant <value = int64[1] {-1}> ()
scale_column = Unsqueeze (weight_scale, last_axis)
dense = Mul (e4m3_numbers, scale_column)
""",
    encode=_encode,
    decode=_decode,
)
