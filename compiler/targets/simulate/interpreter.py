"""Patches for Triton's interpreter: conversions that round like devices, and no work repeated in every call.

The interpreter of Triton 3.9 truncates float32 to bfloat16 and loses the carry in its other roundings, so long chains
of kernels drift. It also patches the language again for every call of a helper, builds a table of dtypes for every
lookup, and multiplies transposed matrices without BLAS. `install` replaces these functions.
"""

from __future__ import annotations

from dataclasses import replace
from functools import cache
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
import triton.language as tl
from triton.runtime import interpreter

from . import quick

_TORCH = {
    tl.float16: torch.float16,
    tl.bfloat16: torch.bfloat16,
    tl.float32: torch.float32,
    tl.float64: torch.float64,
    tl.float8e4nv: torch.float8_e4m3fn,
    tl.float8e5: torch.float8_e5m2,
}
_their_conversion = interpreter._convert_float
_their_patch = interpreter._patch_lang
_their_dot = interpreter.InterpreterBuilder.create_dot
_their_np_dtype = interpreter._get_np_dtype
_np_dtypes: dict[str, np.dtype] = {}


def install() -> None:
    """Patch the interpreter of this process, which afterwards can only interpret; further calls change nothing."""
    quick.install()
    interpreter._convert_float = convert  # pyright: ignore[reportAttributeAccessIssue]
    interpreter._patch_lang = lambda _: _patched()  # pyright: ignore[reportAttributeAccessIssue]
    interpreter._get_np_dtype = _np_dtype  # pyright: ignore[reportAttributeAccessIssue]
    interpreter.InterpreterBuilder.create_dot = _dot  # pyright: ignore[reportAttributeAccessIssue]
    builder = interpreter.interpreter_builder
    builder.options = replace(builder.options, sanitize_overflow=False)  # it reports only in debug mode


@cache
def _patched() -> SimpleNamespace:
    """Patch the language once and keep the patch, since the next call needs it again."""
    _their_patch(SimpleNamespace(__globals__={"tl": tl, "core": tl.core}))
    return SimpleNamespace(restore=lambda: None)


def _np_dtype(dtype: Any) -> np.dtype:
    element = dtype.scalar
    if element.name not in _np_dtypes:  # equal types have equal names; pointer types cannot be keys
        _np_dtypes[element.name] = _their_np_dtype(element)
    return _np_dtypes[element.name]


def _dot(self: Any, a: Any, b: Any, *rest: Any) -> Any:
    contiguous = [interpreter.TensorHandle(np.ascontiguousarray(x.data), x.dtype) for x in (a, b)]
    return _their_dot(self, *contiguous, *rest)


def convert(values: np.ndarray, source: Any, target: Any, rounding: Any) -> np.ndarray:
    """Convert `values` (numbers of dtype `source`, or their bits) to `target`; returns bits as unsigned integers."""
    if source not in _TORCH or target not in _TORCH or target is tl.float64:
        return _their_conversion(values, source, target, rounding)
    if source is tl.bfloat16 and target is tl.float32:
        return values.view(np.uint16).astype(np.uint32) << 16
    raw = torch.from_numpy(np.ascontiguousarray(values).view(np.uint8).reshape(-1).copy())
    converted = raw.view(_TORCH[source]).to(_TORCH[target])
    return converted.view(torch.uint8).numpy().view(f"u{converted.itemsize}").reshape(values.shape)
