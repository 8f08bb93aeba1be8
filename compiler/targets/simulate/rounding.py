"""Conversions between float types in Triton's interpreter, rounded as devices round: to nearest, ties to even.

The interpreter of Triton 3.9 truncates float32 to bfloat16 and loses the carry of its other roundings, so that long
chains of kernels drift. `install` replaces its one conversion function.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
import triton.language as tl
from triton.runtime import interpreter

_TORCH = {
    tl.float16: torch.float16,
    tl.bfloat16: torch.bfloat16,
    tl.float32: torch.float32,
    tl.float64: torch.float64,
    tl.float8e4nv: torch.float8_e4m3fn,
    tl.float8e5: torch.float8_e5m2,
}
_BITS = {8: (np.uint8, torch.uint8), 16: (np.uint16, torch.int16), 32: (np.uint32, torch.int32)}
_theirs = interpreter._convert_float


def install() -> None:
    """Let the interpreter round to nearest; calling it again changes nothing."""
    interpreter._convert_float = convert  # pyright: ignore[reportAttributeAccessIssue]


def convert(values: np.ndarray, source: Any, target: Any, rounding: Any) -> np.ndarray:
    """Bits of `values` (an array of `source` numbers or of their bits) as `target` numbers, as unsigned integers."""
    if source not in _TORCH or target not in _TORCH or target.primitive_bitwidth not in _BITS:
        return _theirs(values, source, target, rounding)
    raw = torch.from_numpy(np.ascontiguousarray(values).view(np.uint8).reshape(-1).copy())
    converted = raw.view(_TORCH[source]).to(_TORCH[target])
    unsigned, signed = _BITS[target.primitive_bitwidth]
    return converted.view(signed).numpy().view(unsigned).reshape(values.shape)
