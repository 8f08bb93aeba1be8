"""4-bit activations: E2M1 in groups along K, as FP4 tensor cores multiply them with weights of the same format.

A group's scale is E4M3 times a constant for 16 numbers (nvfp4), or a power of two for 32 (mxfp4). Both are known from
the group alone, so any kernel that holds a group can write its codes, whatever the token's other numbers are.
`passes/graph/activations.py` has the same arithmetic as ONNX text.
"""

from __future__ import annotations

import torch

from ..runtime.numbers import E2M1, E4M3, E8M0
from .formats.mxfp4 import BLOCK as MXFP4_GROUP
from .formats.mxfp4 import ROUND_UP_FROM
from .formats.nvfp4 import BLOCK as NVFP4_GROUP

GROUP = {"nvfp4": NVFP4_GROUP, "mxfp4": MXFP4_GROUP}
"""Numbers along K that share a scale, by format."""
NVFP4_UNIT = 2.0**-2
"""What an E4M3 scale of 1 stands for. Scales reach from 2^-11 to 112: numbers beyond 672 are saturated, and groups
whose largest is below 0.023 have a subnormal scale. On the bundled model units from 2^-4 to 1 give the same numbers,
and one for each token almost the same (benchmarks/w4a4.py), but that is known only when all groups of a token are."""
SMALLEST = 2.0**-100
"""The smallest scale of mxfp4, as for weights."""


def quantize_activations(x: torch.Tensor, format: str) -> tuple[torch.Tensor, torch.Tensor]:
    """x [rows, K] -> codes u8 [rows, K / 2], the even k in the low nibble, and scales u8 [rows, K / group].

    Codes are the nearest E2M1 numbers of x / scale, ties to even, saturated at 6. A group with a number that is not
    finite has the scale NaN.
    """
    group = GROUP[format]
    wide = x.double().view(x.shape[0], -1, group)
    largest = wide.abs().amax(2)
    finite = largest.isfinite()
    if format == "nvfp4":
        ratio = (largest.where(finite, 0.0).float() / (6 * NVFP4_UNIT)).clamp(2.0**-9, 448.0)
        scales = ratio.to(torch.float8_e4m3fn).view(torch.uint8).where(finite, 0x7F)
    else:
        mantissa, exponent = torch.frexp(largest.where(finite, 0.0).clamp(min=4 * SMALLEST))
        exponent = exponent - 1 + (2 * mantissa >= ROUND_UP_FROM) - 2
        scales = (exponent + 127).to(torch.uint8).where(finite, 0xFF)
    ratio = (wide / _numbers(scales, format).double()[:, :, None]).abs()
    midpoints = torch.from_numpy((E2M1[:7] + E2M1[1:8]) / 2).double()
    code = (ratio[..., None] > midpoints).sum(-1)
    code += ((ratio[..., None] == midpoints) & (torch.arange(7) % 2 == 1)).sum(-1)  # a tie below an even code
    code += 8 * wide.signbit()
    pairs = code.view(x.shape[0], -1, 2)
    return (pairs[..., 0] | pairs[..., 1] << 4).to(torch.uint8), scales


def dequantize_activations(codes: torch.Tensor, scales: torch.Tensor, format: str) -> torch.Tensor:
    """The numbers f64 [rows, K] of codes and scales."""
    nibbles = torch.stack([codes & 15, codes >> 4], -1).view(codes.shape[0], -1, GROUP[format])
    numbers = torch.from_numpy(E2M1.copy()).double()[nibbles.long()]
    return (numbers * _numbers(scales, format).double()[:, :, None]).view(codes.shape[0], -1)


def _numbers(scales: torch.Tensor, format: str) -> torch.Tensor:
    table, unit = (E4M3, NVFP4_UNIT) if format == "nvfp4" else (E8M0, 1.0)
    return torch.from_numpy(table.copy())[scales.long()] * unit
