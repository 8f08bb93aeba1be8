"""What a kernel file offers: a Triton function, calls of it with everything a plan needs, and cases that prove it.

Kept by all kernels: dimensions known at build are constexprs; of run-time numbers only the sizes of
`runtime/plan/formula.py` occur, as 32-bit integers. Pointers are aligned to 16 bytes and tensors are contiguous. A
pointer that is not used is passed as the constant None. Programs of one grid may run in any order. Results do not
depend on it: no floating-point atomics.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Container, Iterable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from ....runtime.dtypes import KERNEL_DTYPES

ROUNDING = {"bf16": 2.0**-8, "f16": 2.0**-11, "f32": 2.0**-20}
"""What rounding a result to its dtype costs at most, relative to the largest: the least tolerance of a case."""
EMULATE = "EMULATE"
"""A constexpr of kernels with inline PTX: True in the interpreter, which cannot run it, False on a device."""


@dataclass(frozen=True)
class Operand:
    """A tensor a kernel reads or writes: its name in the plan, dtype, and shape (formulas where it varies)."""

    name: str
    dtype: str
    shape: tuple[int | str, ...]

    def __post_init__(self) -> None:
        if self.dtype not in KERNEL_DTYPES:
            raise ValueError(f"operand {self.name}: dtype {self.dtype!r}")

    @staticmethod
    def of(name: str, dtype: str, *shape: int | str) -> Operand:
        """As the functions that make room for a kernel's results call what makes operands."""
        return Operand(name, dtype, shape)

    @property
    def item_bytes(self) -> int:
        return KERNEL_DTYPES[self.dtype].bytes

    @property
    def bytes(self) -> str:
        """Its size as a formula."""
        return product(*self.shape, self.item_bytes)


Argument = Operand | int | float | str
"""What a parameter gets: a tensor, a fixed number, or the name of a size."""
Constant = int | float | bool | str | None


@dataclass(frozen=True)
class Kernel:
    """A Triton function and the chips it can be compiled for (compute capability, such as 90)."""

    name: str
    function: Any
    minimum_sm: int = 80

    @cached_property  # asked for with every call
    def parameters(self) -> tuple[str, ...]:
        return tuple(inspect.signature(self.function.fn).parameters)

    def given(self, constants: Container[str]) -> list[str]:
        """The parameters that every launch gives, in order: all that are not constants."""
        return [name for name in self.parameters if name not in constants and name != EMULATE]


@dataclass(frozen=True)
class KernelCall:
    """One launch as its kernel file describes it.

    arguments by parameter name, without constexprs; constants are the constexprs. grid: up to three formulas. writes:
    the parameters whose tensors are written. bytes and operations (formulas): what must be moved and computed, the
    price on a perfect machine.
    """

    kernel: Kernel
    arguments: Mapping[str, Argument]
    constants: Mapping[str, Constant]
    grid: tuple[int | str, ...]
    writes: tuple[str, ...]
    bytes: int | str
    operations: int | str
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

    @property
    def operands(self) -> dict[str, Operand]:
        """The arguments that are tensors."""
        return {name: one for name, one in self.arguments.items() if isinstance(one, Operand)}


@dataclass(frozen=True)
class Case:
    """A call with numbers: torch tensors by operand name, sizes, and what the written ones must then hold.

    A written operand without a tensor in `inputs` starts as garbage (NaN, or -1). tolerance: max|a-b| / max|b|, of all
    elements of `expected` that are not NaN (NaN: any value is right there). device_tolerance: added to it on a device,
    for arithmetic that is less exact there than in the interpreter.
    """

    name: str
    call: KernelCall
    inputs: Mapping[str, Any]
    sizes: Mapping[str, int]
    expected: Mapping[str, Any]
    tolerance: float = 1e-5
    device_tolerance: float = 0.0


@dataclass(frozen=True)
class Suite:
    """All of a kernel file that the tests and `llmc kernels` walk through: kernels, cases, and calls of real shapes."""

    kernels: tuple[Kernel, ...]
    cases: Callable[[], Iterable[Case]]
    calls: Callable[[int], Iterable[KernelCall]] = field(default=lambda sm: ())
    """The calls of Llama-3.1-8B in this file's kernels for a chip: what is compiled to look at registers and spills."""


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
