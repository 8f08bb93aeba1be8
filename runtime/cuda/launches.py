"""Binds a program of a plan to a step's sizes: evaluates grids and parameters once, places inputs and outputs.

Parameters follow Triton's own launcher (backends/nvidia/driver.py and driver.c): the arguments that are not constants
in order, each in its type, then always a pointer to global scratch and one to profile scratch. Kernels in CUDA C++ have
the same; of their matrices that are read in tiles, a tensor map is passed (`tensor_maps.py`).
"""

from __future__ import annotations

import ctypes
import math
import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache, partial
from typing import Any

import numpy as np

from ..dtypes import KERNEL_DTYPES
from ..errors import EngineError
from ..plan.between import Collective
from ..plan.budget import inputs_of, packed, scratch_of
from ..plan.formula import value
from ..plan.plan import Argument, Launch, MachineCode, Module, Plan, Program, Tensor
from .driver import Driver
from .tensor_maps import ALIGNMENT, BYTES, passed, tile_of

_CODES = {"i32": "<i", "i64": "<q", "fp32": "<f", "fp64": "<d"}
_POINTER = "<Q"
_MATRIX = f"{BYTES}s"
_BANK_OFFSET = 0x210
"""Where parameters begin in the constant bank (of sm_90 on): alignment counts there, not in the block of parameters."""


@dataclass(frozen=True)
class LoadedKernel:
    """A loaded module of the plan."""

    module: Module
    code: MachineCode
    function: Any


@dataclass(frozen=True)
class Allocations:
    """Addresses of the device's allocations, and sizes of those that every program shares."""

    arena: int
    arena_bytes: int
    inputs: int
    scratch: tuple[int, int]
    """Global and profile scratch."""
    scratch_bytes: tuple[int, int]
    tensors: Mapping[str, int]
    """Addresses of weights, caches and states by name."""


@dataclass(frozen=True)
class Span:
    """An array at an address (an output) or an offset (an input of the step)."""

    at: int
    dtype: np.dtype
    shape: tuple[int, ...]

    @property
    def nbytes(self) -> int:
        return math.prod(self.shape) * self.dtype.itemsize


@dataclass(frozen=True)
class Field:
    """A parameter in memory: its format code for `struct`, and its offset in bytes."""

    code: str
    offset: int

    @property
    def size(self) -> int:
        return struct.calcsize(self.code)


@dataclass(frozen=True)
class Parameters:
    """A kernel's parameters in memory; `address` is the argument of cuLaunchKernelEx."""

    address: int
    block: Any
    pointers: Any


@dataclass(frozen=True)
class BoundLaunch:
    """A launch with all formulas evaluated."""

    function: Any
    config: Any
    parameters: Parameters
    label: str


@dataclass(frozen=True)
class BoundCollective:
    """An exchange with all formulas evaluated; addresses are 0 where nothing is sent or received."""

    op: str
    sends: int
    receives: int
    count: int
    dtype: str
    peer: int | None
    label: str


@dataclass(frozen=True)
class BoundProgram:
    """A program bound to a step's sizes; inputs and buffers by name, `input_bytes` for all inputs together."""

    inputs: Mapping[str, Span]
    input_bytes: int
    launches: tuple[BoundLaunch | BoundCollective, ...]
    buffers: Mapping[str, Span]

    @property
    def kernels(self) -> tuple[BoundLaunch, ...]:
        return tuple(one for one in self.launches if isinstance(one, BoundLaunch))


def bind(
    plan: Plan,
    program: Program,
    sizes: Mapping[str, int],
    allocated: Allocations,
    kernels: Sequence[LoadedKernel],
    driver: Driver,
    stream: Any,
) -> BoundProgram:
    """Evaluate a program for a step's sizes. Launches with an empty grid are dropped, and exchanges of nothing.

    Raises:
        EngineError: the step needs more than was allocated, or a launch's arguments do not have its module's types.
    """
    _check_room(plan, program, sizes, allocated)
    wanted = inputs_of(plan, program)
    offsets, input_bytes = packed({name: tensor.bytes(sizes) for name, tensor in wanted.items()})
    inputs = {name: _span(tensor, offsets[name], sizes) for name, tensor in wanted.items()}
    buffers = {name: _span(tensor, allocated.arena + tensor.offset, sizes) for name, tensor in program.buffers.items()}
    addresses = {
        **allocated.tensors,
        **{name: allocated.inputs + offset for name, offset in offsets.items()},
        **{name: span.at for name, span in buffers.items()},
    }
    evaluated = cache(partial(value, sizes=sizes))
    launches: list[BoundLaunch | BoundCollective] = []
    for launch in program.launches:
        if isinstance(launch, Collective):
            if evaluated(launch.count):
                launches.append(_exchange(program, launch, addresses, evaluated(launch.count)))
            continue
        grid = tuple(map(evaluated, launch.grid))
        if not all(grid):
            continue
        kernel = kernels[launch.module]
        _check_arguments(plan, program, launch, kernel.module)
        values = [
            _passed(plan, program, kind, argument, argument.resolve(addresses, sizes), driver)
            for kind, argument in zip(kernel.module.types, launch.arguments, strict=True)
        ]
        needed = kernel.code.global_scratch, kernel.code.profile_scratch
        scratch = [address if size else 0 for address, size in zip(allocated.scratch, needed, strict=True)]
        # a copy precedes the first launch, and NCCL's own kernels or copies an exchange: no kernel that lets one begin
        early = plan.pdl and kernel.code.pdl and bool(launches) and isinstance(launches[-1], BoundLaunch)
        launches.append(
            BoundLaunch(
                kernel.function,
                driver.config(grid, kernel.module.warps, kernel.code.shared, stream, pdl=early),
                pack([*kernel.module.types, "*i8", "*i8"], [*values, *scratch], what=launch.label),
                f"launch {launch.label} ({kernel.module.kernel})",
            )
        )
    return BoundProgram(inputs, input_bytes, tuple(launches), buffers)


def _exchange(program: Program, one: Collective, addresses: Mapping[str, int], count: int) -> BoundCollective:
    sends, receives = (0 if name is None else addresses[name] for name in (one.sends, one.receives))
    dtype, label = program.buffers[one.tensors[0]].dtype, f"exchange {one.label} ({one.collective})"
    return BoundCollective(one.collective, sends, receives, count, dtype, one.peer, label)


def layout(types: Sequence[str]) -> tuple[Field, ...]:
    """The positions of parameters of these known types in memory: in order, each aligned to its own size.

    A tensor map is aligned to 64 bytes of the constant bank.
    """
    fields, end = [], 0
    for code in map(_code, types):
        size = struct.calcsize(code)
        align, base = (ALIGNMENT, _BANK_OFFSET) if code == _MATRIX else (size, 0)
        fields.append(Field(code, -(-(base + end) // align) * align - base))
        end = fields[-1].offset + size
    return tuple(fields)


def pack(types: Sequence[str], values: Sequence[int | float | bytes], *, what: str) -> Parameters:
    """Write parameters to memory at the positions of `layout`.

    Raises:
        EngineError: a type is unknown, or a number does not fit its type.
    """
    if len(types) != len(values) or not all(map(_code, types)):
        raise EngineError(
            f"cannot pack the parameters of launch {what!r}: {', '.join(types)}"[:300],
            found=f"{len(values)} values, and types among {', '.join(_CODES)} and pointers",
            fix="build the engine again",
        )
    fields = layout(types)
    end = fields[-1].offset + fields[-1].size if fields else 0
    block = ctypes.create_string_buffer(end + 8)
    base = -(-ctypes.addressof(block) // 8) * 8
    shift = base - ctypes.addressof(block)
    for field, kind, number in zip(fields, types, values, strict=True):
        try:
            struct.pack_into(field.code, block, shift + field.offset, number)
        except (struct.error, OverflowError):
            raise EngineError(f"expected a parameter of type {kind} in launch {what!r}", found=f"{number!r}") from None
    pointers = (ctypes.c_void_p * len(fields))(*(base + field.offset for field in fields))
    return Parameters(ctypes.addressof(pointers), block, pointers)


def _code(kind: str) -> str:
    """The format code for `struct` of a Triton type, or ""."""
    if tile_of(kind) is not None:
        return _MATRIX
    return _POINTER if kind.startswith("*") else _CODES.get(kind, "")


def _passed(plan: Plan, program: Program, kind: str, argument: Argument, found: Any, driver: Driver) -> Any:
    """The value of an argument; of a matrix that is read in tiles, with the rows of the program's largest step."""
    if tile_of(kind) is None or argument.tensor is None:
        return found
    return passed(driver, kind, found, plan.tensor(program, argument.tensor).dims(program.limits))


def _check_room(plan: Plan, program: Program, sizes: Mapping[str, int], allocated: Allocations) -> None:
    needed = (program.arena, *scratch_of(plan, program, sizes))
    given = (allocated.arena_bytes, *allocated.scratch_bytes)
    if any(need > room for need, room in zip(needed, given, strict=True)):
        raise EngineError(
            f"cannot run a step of {dict(sizes)} in {given} bytes of buffers and scratch",
            found=f"{needed} needed",
            fix="build the engine again",
        )


def _check_arguments(plan: Plan, program: Program, launch: Launch, module: Module) -> None:
    """Check every argument's type: the driver does not, and a wrong pointer type gives wrong numbers."""
    found = [_type(plan, program, argument) for argument in launch.arguments]
    if len(found) != len(module.types) or any(
        _held(expected) not in allowed for expected, allowed in zip(module.types, found, strict=True)
    ):
        raise EngineError(
            f"expected arguments of {module.kernel}({', '.join(module.types)}) in launch {launch.label!r}"[:400],
            found=", ".join(allowed[0] for allowed in found)[:400],
            fix="build the engine again",
        )


def _held(kind: str) -> str:
    """The type of the tensor behind a parameter."""
    return kind if tile_of(kind) is None else "*u8"


def _type(plan: Plan, program: Program, argument: Argument) -> tuple[str, ...]:
    """The parameter types that an argument can have."""
    if argument.tensor is not None:
        return (KERNEL_DTYPES[plan.tensor(program, argument.tensor).dtype].pointer,)
    return ("fp32", "fp64") if argument.real is not None else ("i32", "i64")


def _span(tensor: Tensor, at: int, sizes: Mapping[str, int]) -> Span:
    return Span(at, KERNEL_DTYPES[tensor.dtype].numpy, tensor.dims(sizes))
