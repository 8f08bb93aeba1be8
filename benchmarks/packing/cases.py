"""The kernel cases as data: launches with evaluated grids, inputs as bytes, and what must come out."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass, field

import numpy as np
import torch
from bringup.carry import CarriedCase, CaseTensor

from llmc.compiler.targets.cuda.call import Case, Operand
from llmc.compiler.targets.cuda.cubins.compile import specialization_of
from llmc.compiler.targets.cuda.kernels import suites
from llmc.compiler.targets.simulate.call import TORCH_DTYPE
from llmc.runtime.plan.formula import value
from packing.kernels import Kernels

NAME = 16
"""Hexadecimal digits of an array's digest, which is its name: equal arrays are carried once."""


@dataclass
class Cases:
    """Cases that are to be carried, and their arrays by name."""

    carried: list[CarriedCase] = field(default_factory=list)
    arrays: dict[str, np.ndarray] = field(default_factory=dict)

    def add(self, name: str, case: Case, kernels: Kernels) -> None:
        """A case whose kernel has been compiled."""
        call = case.call
        operands = [argument for argument in call.arguments.values() if isinstance(argument, Operand)]
        written = {
            argument.name for parameter in call.writes if isinstance(argument := call.arguments[parameter], Operand)
        }
        tensors = tuple(self._tensor(operand, case, operand.name in written) for operand in dict.fromkeys(operands))
        arguments = tuple(
            argument.name
            if isinstance(argument, Operand)
            else case.sizes[argument]
            if isinstance(argument, str)
            else argument
            for _, argument in call.ordered
        )
        x, y, z = (value(formula, case.sizes) for formula in (*call.grid, 1, 1)[:3])
        tolerance = case.tolerance + case.device_tolerance
        self.carried.append(
            CarriedCase(name, kernels.id(specialization_of(call)), (x, y, z), arguments, tensors, tolerance)
        )

    def _tensor(self, operand: Operand, case: Case, written: bool) -> CaseTensor:
        shape = tuple(value(dim, case.sizes) for dim in operand.shape)
        initial = expected = None
        if operand.name in case.inputs:
            tensor = case.inputs[operand.name].contiguous().reshape(-1)
            initial = self._keep(tensor.view(torch.uint8).numpy() if tensor.numel() else np.zeros(0, np.uint8))
        if operand.name in case.expected:
            kind = torch.float32 if TORCH_DTYPE[operand.dtype].is_floating_point else torch.float64
            expected = self._keep(torch.as_tensor(case.expected[operand.name]).to(kind).reshape(shape).numpy())
        return CaseTensor(operand.name, operand.dtype, shape, written, initial, expected)

    def _keep(self, array: np.ndarray) -> str:
        told = f"{array.dtype} {array.shape}".encode() + np.ascontiguousarray(array).tobytes()
        name = hashlib.sha256(told).hexdigest()[:NAME]
        self.arrays[name] = array
        return name


def cases_of(sm: int, files: Iterable[str] | None = None) -> dict[str, Case]:
    """The cases that a chip can run, by file and name; of some kernel files, or of all."""
    found = suites()
    return {
        f"{file}:{case.name}": case
        for file in (found if files is None else files)
        for case in found[file].cases()
        if case.call.kernel.minimum_sm <= sm
    }
