"""Number tables and bit conversions in numpy: runtime and compiler read every weight byte in the same way."""

from __future__ import annotations

import numpy as np

from .dtypes import DTYPES

RAW_DTYPE: dict[str, np.dtype] = {name: dtype.numpy for name, dtype in DTYPES.items()}
"""The numpy type that holds each safetensors dtype."""


def _small_float(bits: int, exponent_bits: int, mantissa_bits: int, bias: int) -> np.ndarray:
    """Values of all 2^bits codes of a sign-exponent-mantissa format with subnormals and without infinities."""
    code = np.arange(1 << bits)
    exponent = (code >> mantissa_bits) & ((1 << exponent_bits) - 1)
    mantissa = (code & ((1 << mantissa_bits) - 1)) / (1 << mantissa_bits)
    magnitude = np.where(
        exponent == 0, np.ldexp(mantissa, 1 - bias), np.ldexp(1 + mantissa, np.maximum(exponent, 1) - bias)
    )
    return np.where(code >> (bits - 1), -magnitude, magnitude).astype(np.float32)


def _frozen(table: np.ndarray) -> np.ndarray:
    table.setflags(write=False)
    return table


E2M1: np.ndarray = _frozen(_small_float(4, 2, 1, 1))
"""``f32 [16]``: value of each FP4 code; 8 is -0."""
E4M3: np.ndarray = _frozen(np.where(np.arange(256) % 128 == 127, np.float32(np.nan), _small_float(8, 4, 3, 7)))
"""``f32 [256]``: value of each FP8 code (the variant without infinities); 0x7F and 0xFF are NaN."""
E8M0: np.ndarray = _frozen(np.append(np.ldexp(np.float32(1), np.arange(-127, 128)), np.float32(np.nan)))
"""``f32 [256]``: 2^(code-127); 255 is NaN, 0 is a subnormal float32."""
_E5M2 = (np.arange(256, dtype=np.uint16) << 8).view(np.float16).astype(np.float32)  # the upper byte of a float16
_VALUES = {"F8_E4M3": E4M3, "F8_E8M0": E8M0, "F8_E5M2": _E5M2}


def bf16_to_f32(bits: np.ndarray) -> np.ndarray:
    """The float32 values of bfloat16 bits (uint16), same shape; exact."""
    wide = bits.astype(np.uint32)
    wide <<= np.uint32(16)
    return wide.view(np.float32)


def f32_to_bf16(values: np.ndarray) -> np.ndarray:
    """The bfloat16 bits (uint16) nearest to float32 values, ties to even; a NaN stays a (quiet) NaN with its sign."""
    bits = np.ascontiguousarray(values, dtype=np.float32).view(np.uint32).reshape(values.shape)
    rounded = np.asarray((bits >> np.uint32(16)) & np.uint32(1))
    rounded += np.uint32(0x7FFF)
    rounded += bits  # wraps only for NaN, which is replaced below
    rounded >>= np.uint32(16)
    nan = np.isnan(values)
    if nan.any():
        rounded = np.where(nan, (bits >> np.uint32(16)) | np.uint32(0x40), rounded)
    return np.asarray(rounded).astype(np.uint16)


def to_f32(raw: np.ndarray, dtype: str) -> np.ndarray:
    """float32 values of a raw array of the safetensors dtype; same shape, a new array unless it is F32 already.

    Raises:
        ValueError: the dtype is unknown.
    """
    if dtype == "BF16":
        return bf16_to_f32(raw)
    if dtype in _VALUES:
        return _VALUES[dtype][raw]
    if dtype in RAW_DTYPE:
        return raw.astype(np.float32, copy=False)
    raise ValueError(f"unknown dtype {dtype!r}; known: {', '.join(RAW_DTYPE)}")
