"""Converts weights of any format to E4M3 with a scale per row, so that large steps run on FP8 tensor cores.

The second rounding of a 4-bit or 8-bit weight changes it by at most 2^-4 of its value. It happens once, when the
weights are in place: in each step it would move two to three times the bytes that its product reads.
"""

# Triton's type stubs reject plain numbers as constexprs, and its loops.
# pyright: reportArgumentType=false, reportGeneralTypeIssues=false

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
import triton
import triton.language as tl

from ......quantize import FORMATS
from ...call import Case, Kernel, KernelCall, Operand, Suite, next_power, product, total
from ..fp8 import LARGEST, LEAST, MINIMUM_SM, scale_of, to_e4m3
from . import cases as linear_cases
from .dequantize import GROUP, PER_WORD, e4m3, e8m0

_COLUMNS = 4096


@triton.jit
def _values(w, scale, row, column, K: tl.constexpr, FORMAT: tl.constexpr, PER_WORD: tl.constexpr, GROUP: tl.constexpr):
    """Weights of a row at `column` as f32, without the scale of the tensor; 0 past the row's end."""
    inside = column < K
    if PER_WORD == 8:
        byte = tl.load(w + row * (K // 2) + column // 2, inside, 0).to(tl.int32)
        code = (byte >> (column % 2 * 4)) & 15
    else:
        code = tl.load(w + row * K + column, inside, 0).to(tl.int32)
    group = tl.load(scale + row * (K // GROUP) + tl.minimum(column // GROUP, K // GROUP - 1))
    if FORMAT == "nvfp4" or FORMAT == "mxfp4":
        half = (((code & 8) << 12) | ((code & 7) << 9)).to(tl.int16).to(tl.float16, bitcast=True)
        number = half.to(tl.float32) * 16384.0
        number *= e4m3(group) if FORMAT == "nvfp4" else e8m0(group)
    else:
        number = (code - (8 if PER_WORD == 8 else 128)).to(tl.float32) * group.to(tl.float32)
    return tl.where(inside, number, 0.0)


@triton.jit
def expand_fp8_kernel(
    w,
    scale,
    tensor_scale,
    codes,
    scales,
    K: tl.constexpr,
    FORMAT: tl.constexpr,
    PER_WORD: tl.constexpr,
    GROUP: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    """Weights [N, K] -> codes u8 [N, K] (E4M3 bits) and scales f32 [N]: max|w| / 448. Grid: N."""
    row = tl.program_id(0).to(tl.int64)
    largest = tl.zeros([COLUMNS], tl.float32)
    for k in range(0, K, COLUMNS):
        column = k + tl.arange(0, COLUMNS)
        largest = tl.maximum(largest, tl.abs(_values(w, scale, row, column, K, FORMAT, PER_WORD, GROUP)))
    factor = scale_of(tl.max(largest, 0))
    stored = factor
    if tensor_scale is not None:
        stored *= tl.load(tensor_scale)
    tl.store(scales + row, stored)
    for k in range(0, K, COLUMNS):
        column = k + tl.arange(0, COLUMNS)
        values = _values(w, scale, row, column, K, FORMAT, PER_WORD, GROUP)
        tl.store(codes + row * K + column, to_e4m3(values, factor), column < K)


KERNEL = Kernel("expand_fp8", expand_fp8_kernel, MINIMUM_SM)


def expand_fp8(weights: tuple[Operand, ...], codes: Operand, scales: Operand, *, format: str) -> KernelCall:
    """Weights [N, K] in their format -> codes u8 [N, K] and scales f32 [N] for `linear_fp8`."""
    n, k = codes.shape
    assert isinstance(n, int) and isinstance(k, int)
    arguments: dict[str, Any] = {"w": weights[0], "scale": weights[1], "codes": codes, "scales": scales}
    constants: dict[str, Any] = {"K": k, "FORMAT": format, "PER_WORD": PER_WORD[format], "GROUP": GROUP[format]}
    constants["COLUMNS"] = min(next_power(k), _COLUMNS)
    if len(weights) == 3:
        arguments["tensor_scale"] = weights[2]
    else:
        constants["tensor_scale"] = None
    return KernelCall(
        KERNEL,
        arguments,
        constants,
        (n,),
        writes=("codes", "scales"),
        bytes=total(*(operand.bytes for operand in (*weights, codes, scales))),
        operations=product(n, 4 * k),
        warps=8,
    )


def _cases() -> Iterator[Case]:
    for format, n, k in (
        ("nvfp4", 5, 144),
        ("mxfp4", 3, 96),
        ("int4", 3, 4192),
        ("int4-g128", 2, 256),
        ("int8", 3, 96),
        ("int8-g128", 2, 128),
    ):
        weight = torch.randn(n, k, generator=torch.Generator().manual_seed(k)) * 0.05
        weight[0] = 0
        parts = FORMATS[format].quantize(weight)
        operands = linear_cases.weight_operands(format, n, k, "bf16")
        inputs = {}
        for operand in operands:
            array = torch.from_numpy(np.array(parts[operand.name]))
            inputs[operand.name] = array.view(torch.bfloat16) if operand.dtype == "bf16" else array
        exact = torch.from_numpy(FORMATS[format].dequantize(parts)).double()
        whole = inputs[operands[2].name].double() if len(operands) == 3 else 1.0
        scale = (exact / whole).abs().amax(1).clamp(min=LEAST) / LARGEST
        codes = (exact / whole / scale[:, None]).to(torch.float8_e4m3fn).view(torch.uint8)
        call = expand_fp8(operands, Operand("codes", "u8", (n, k)), Operand("scales", "f32", (n,)), format=format)
        yield Case(f"{format}-{n}x{k}", call, inputs, {}, {"codes": codes, "scales": scale * whole}, 1e-6)


def _calls(sm: int) -> Iterator[KernelCall]:
    for format in GROUP:
        if format != "fp8":
            weights = linear_cases.weight_operands(format, 28672, 4096, "bf16")
            yield expand_fp8(
                weights, Operand("codes", "u8", (28672, 4096)), Operand("scales", "f32", (28672,)), format=format
            )


SUITE = Suite((KERNEL,), _cases, _calls)
