"""A kernel's case on a GPU: launched through the runtime's own parameters, with guards around its tensors."""

from __future__ import annotations

import ctypes
import math
from collections.abc import Mapping
from contextlib import ExitStack

import torch

from llmc.compiler.targets.cuda.call import Case, Operand
from llmc.compiler.targets.cuda.cubins.compile import Cubin
from llmc.compiler.targets.simulate.call import TORCH_DTYPE, blank
from llmc.runtime.cuda.driver import Driver
from llmc.runtime.cuda.launches import pack
from llmc.runtime.cuda.tensor_maps import passed
from llmc.runtime.plan.formula import value

GUARD = 4096
"""Bytes on both sides of a tensor that no kernel may change."""


def run_case(driver: Driver, case: Case, cubin: Cubin) -> dict[str, torch.Tensor]:
    """Every tensor of the case after its launch.

    AssertionError if something outside the tensors was written.
    """
    operands = {a.name: a for a in case.call.arguments.values() if isinstance(a, Operand)}
    tensors = {
        name: case.inputs[name].clone() if name in case.inputs else blank(operand, case.sizes)
        for name, operand in operands.items()
    }
    with ExitStack() as cleanup:
        stream = driver.stream()
        cleanup.callback(driver.drop_stream, stream)
        buffers = {name: _guarded(tensor) for name, tensor in tensors.items()}
        addresses, pinned = {}, {}
        for name, buffer in buffers.items():
            addresses[name] = driver.allocate(buffer.numel(), name)
            cleanup.callback(driver.free, addresses[name])
            pinned[name] = driver.allocate_host(buffer.numel(), name)
            cleanup.callback(driver.free_host, pinned[name])
            ctypes.memmove(pinned[name], buffer.data_ptr(), buffer.numel())
            driver.copy_in(addresses[name], pinned[name], buffer.numel(), stream)
        grid = [value(formula, case.sizes) for formula in (*case.call.grid, 1, 1)[:3]]
        scratch = [0, 0]
        for index, nbytes in enumerate((cubin.code.global_scratch, cubin.code.profile_scratch)):
            if nbytes:
                scratch[index] = driver.allocate(nbytes * math.prod(grid), "scratch")
                cleanup.callback(driver.free, scratch[index])
        module = driver.module(cubin.data, case.name)
        cleanup.callback(driver.unload, module)
        function = driver.function(module, cubin.code.entry, cubin.code.shared, case.name)
        values = [
            passed(
                driver,
                kind,
                addresses[argument.name] + GUARD,
                [value(str(size), case.sizes) for size in argument.shape],
            )
            if isinstance(argument, Operand)
            else case.sizes[argument]
            if isinstance(argument, str)
            else argument
            for (_, argument), kind in zip(case.call.ordered, cubin.types, strict=True)
        ]
        parameters = pack([*cubin.types, "*i8", "*i8"], [*values, *scratch], what=case.name)
        config = driver.config(grid, case.call.warps, cubin.code.shared, stream)
        if all(grid):
            driver.launch(config, function, parameters.address, case.name)
        for name, buffer in buffers.items():
            driver.copy_out(pinned[name], addresses[name], buffer.numel(), stream)
        driver.wait(stream)
        for name, buffer in buffers.items():
            ctypes.memmove(buffer.data_ptr(), pinned[name], buffer.numel())
    return {name: _inner(buffer, operands[name], case.sizes, name) for name, buffer in buffers.items()}


def _guarded(tensor: torch.Tensor) -> torch.Tensor:
    """A tensor's bytes between guards."""
    flat = tensor.contiguous().reshape(-1).view(torch.uint8)
    guard = torch.full((GUARD,), 0xA5, dtype=torch.uint8)
    return torch.cat([guard, flat, guard])


def _inner(buffer: torch.Tensor, operand: Operand, sizes: Mapping[str, int], name: str) -> torch.Tensor:
    assert bool((buffer[:GUARD] == 0xA5).all() and (buffer[-GUARD:] == 0xA5).all()), f"written outside of {name}"
    shape = [value(dim, sizes) for dim in operand.shape]
    return buffer[GUARD:-GUARD].clone().view(TORCH_DTYPE[operand.dtype]).reshape(shape)
