"""The types that a kernel file exports: a Triton function, its calls with all that a plan needs, and test cases.

Rules for all kernels: dimensions known at build are constexprs; the only run-time numbers are the sizes of
`runtime/plan/formula.py`, as 32-bit integers. Pointers are aligned to 16 bytes and tensors are contiguous. An unused
pointer is the constant None. Programs of one grid may run in any order, and results do not depend on it: no
floating-point atomics.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Container, Iterable, Mapping
from dataclasses import dataclass, field
from functools import cached_property, lru_cache
from typing import Any

from ....runtime.dtypes import KERNEL_DTYPES
from ...kernel_imports import made

ROUNDING = {"bf16": 2.0**-8, "f16": 2.0**-11, "f32": 2.0**-20}
"""Largest error of rounding a result to its dtype, relative to the largest value: the least tolerance of a case."""
EMULATE = "EMULATE"
"""A constexpr of kernels with inline PTX: True in the interpreter, which cannot run PTX, False on a device."""


@dataclass(frozen=True)
class Operand:
    """A tensor that a kernel reads or writes: its name in the plan, dtype, and shape; sizes that vary are formulas."""

    name: str
    dtype: str
    shape: tuple[int | str, ...]

    def __post_init__(self) -> None:
        if self.dtype not in KERNEL_DTYPES:
            raise ValueError(f"operand {self.name}: dtype {self.dtype!r}")

    @staticmethod
    def of(name: str, dtype: str, *shape: int | str) -> Operand:
        """`Operand` in the call form that functions with a `make` parameter use."""
        return Operand(name, dtype, shape)

    @property
    def item_bytes(self) -> int:
        return KERNEL_DTYPES[self.dtype].bytes

    @property
    def bytes(self) -> str:
        """The size in bytes, as a formula."""
        return product(*self.shape, self.item_bytes)


Argument = Operand | int | float | str
"""The value of a parameter: a tensor, a fixed number, or the name of a size."""
Constant = int | float | bool | str | None


@dataclass(frozen=True)
class Native:
    """CUDA C++ that computes what a Triton function defines, for chips of one compute capability only."""

    file: str
    """Inside the folder of the kernels."""
    tiles: tuple[tuple[str, str], ...] = ()
    """Parameters that are matrices read in tiles, by a tensor map, and the constant with a tile's rows."""


@dataclass(frozen=True)
class Kernel:
    """A Triton function, and the lowest compute capability it can be compiled for (such as 90).

    With `native`, machine code is that of the CUDA C++, for this capability alone, and the function is the definition:
    it has the same parameters, constants and grid, and the interpreter runs it.
    """

    name: str
    defined: Any
    """As its file has it: a Triton function, or one that Triton has not seen yet."""
    minimum_sm: int = 80
    native: Native | None = None

    @cached_property
    def function(self) -> Any:
        """The Triton function."""
        return made(self.defined)

    @cached_property  # every call reads it
    def parameters(self) -> tuple[str, ...]:
        return tuple(inspect.signature(self.defined.fn).parameters)

    def given(self, constants: Container[str]) -> list[str]:
        """The parameters that a launch passes, in order: all that are not constants."""
        return [name for name in self.parameters if name not in constants and name != EMULATE]


@dataclass(frozen=True)
class KernelCall:
    """One launch of a kernel, with its price."""

    kernel: Kernel
    arguments: Mapping[str, Argument]
    """Values by parameter name, without the constexprs."""
    constants: Mapping[str, Constant]
    """The constexprs by parameter name."""
    grid: tuple[int | str, ...]
    """Up to three formulas."""
    writes: tuple[str, ...]
    """The parameters whose tensors are written."""
    bytes: int | str
    """Bytes that must be moved (a formula): with `operations`, the price on a perfect machine."""
    operations: int | str
    """Operations that must be computed (a formula)."""
    warps: int = 4
    stages: int = 2

    def __post_init__(self) -> None:
        given, known = {*self.arguments, *self.constants}, {*self.kernel.parameters} - {EMULATE}
        if given != known or {*self.writes} - {*self.arguments}:
            raise ValueError(f"{self.kernel.name}: parameters {sorted(given ^ known)} or writes {self.writes}")

    @property
    def ordered(self) -> tuple[tuple[str, Argument], ...]:
        """The arguments in the order of the function's parameters."""
        return tuple((name, self.arguments[name]) for name in self.kernel.given(self.constants))

    @cached_property
    def operands(self) -> Mapping[str, Operand]:
        """The arguments that are tensors."""
        return {name: one for name, one in self.arguments.items() if isinstance(one, Operand)}


@dataclass(frozen=True)
class CollectiveCall:
    """One exchange with other ranks; fields as in `runtime/plan/between.py`, Collective."""

    op: str
    sends: Operand | None
    receives: Operand | None
    count: str
    link_bytes: str
    peer: int | None = None

    @property
    def operands(self) -> dict[str, Operand]:
        """The tensors that are sent or received."""
        given = {"sends": self.sends, "receives": self.receives}
        return {name: one for name, one in given.items() if one is not None}


@dataclass(frozen=True)
class Case:
    """A call with inputs and expected outputs."""

    name: str
    call: KernelCall
    inputs: Mapping[str, Any]
    """Torch tensors by operand name. A written operand without one starts as garbage (NaN, or -1)."""
    sizes: Mapping[str, int]
    expected: Mapping[str, Any]
    """Torch tensors of the written operands by name; NaN: any value is right."""
    tolerance: float = 1e-5
    """Of max|a-b| / max|b| over the elements of `expected` that are not NaN."""
    device_tolerance: float = 0.0
    """Added to it on a device, for arithmetic that is less exact there than in the interpreter."""


@dataclass(frozen=True)
class Suite:
    """What the tests and `llmc kernels` read of a kernel file: kernels, cases, and calls with a real model's shapes."""

    kernels: tuple[Kernel, ...]
    cases: Callable[[], Iterable[Case]]
    calls: Callable[[int], Iterable[KernelCall]] = field(default=lambda sm: ())
    """The calls of Llama-3.1-8B for a compute capability; they are compiled to report registers and spills."""


@lru_cache(1 << 14)
def product(*factors: int | str) -> str:
    """The product of numbers and formulas as a formula."""
    number = 1
    names = []
    for factor in factors:
        if isinstance(factor, int):
            number *= factor
        else:
            names.append(factor if factor.isidentifier() else f"({factor})")
    return " * ".join([*names, str(number)]) if number != 1 or not names else " * ".join(names)


def total(*terms: int | str) -> str:
    """The sum of numbers and formulas as a formula."""
    return " + ".join(str(term) for term in terms)


def next_power(n: int) -> int:
    """The smallest power of two of at least n: the size of a `tl.arange`."""
    return 1 << max(n - 1, 0).bit_length()
