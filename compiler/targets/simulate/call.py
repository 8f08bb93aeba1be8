"""Runs one launch through Triton's interpreter: executes the kernel's source on torch tensors on the CPU, slowly."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch

from ....runtime.dtypes import KERNEL_DTYPES
from ....runtime.plan.formula import value
from ..cuda.call import EMULATE, Kernel, KernelCall, Operand
from . import interpreter

interpreter.install()

TORCH_DTYPE = {name: torch.from_numpy(np.empty(0, one.numpy)).dtype for name, one in KERNEL_DTYPES.items()}
TORCH_DTYPE["bf16"] = torch.bfloat16


def launch(call: KernelCall, tensors: Mapping[str, torch.Tensor], sizes: Mapping[str, int]) -> None:
    """Execute a call on `tensors`, by operand name; outputs are written in place."""
    arguments: dict[str, Any] = {}
    for name, argument in call.ordered:
        if isinstance(argument, Operand):
            arguments[name] = tensors[argument.name]
        else:
            arguments[name] = sizes[argument] if isinstance(argument, str) else argument
    execute(call.kernel, arguments, call.constants, tuple(value(g, sizes) for g in call.grid))


def execute(kernel: Kernel, arguments: Mapping[str, Any], constants: Mapping[str, Any], grid: tuple[int, ...]) -> None:
    """Run the function for every program of the grid; an empty grid runs nothing."""
    emulate = {EMULATE: True} if EMULATE in kernel.parameters else {}
    if all(grid):
        kernel.function[(*grid, 1, 1)[:3]](**arguments, **constants, **emulate)


def blank(operand: Operand, sizes: Mapping[str, int]) -> torch.Tensor:
    """A tensor filled with garbage: NaN, or all bits set."""
    shape = [value(dim, sizes) for dim in operand.shape]
    dtype = TORCH_DTYPE[operand.dtype]
    filler = float("nan") if dtype.is_floating_point else 255 if dtype == torch.uint8 else -1
    return torch.full(shape, filler, dtype=dtype)
