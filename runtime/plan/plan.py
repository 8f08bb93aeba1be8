"""How a GPU runs a profile: buffers with offsets, launches with grids and prices; printable, and free of any device."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, get_args

from ..dtypes import KERNEL_DTYPES
from ..errors import EngineError, nearest
from ..files.records import plain, read
from ..files.strict_json import canonical, loads
from .formula import SIZES, value

BLOCK_TOKENS = 64
"""Positions per block of the paged KV cache."""
VERSION = 3
Kind = Literal["weight", "cache", "input", "state", "buffer"]
"""Bound from the engine; a layer's keys or values; filled before each step; kept between steps; of one program."""


@dataclass(frozen=True)
class KVCache:
    """A kind of cache: that of all layers whose tokens see `window` positions, themselves included (None: all).

    blocks: the most that one sequence takes. Those of a window are a ring: entry i of a block table is block
    i % blocks of the sequence, so that the latest positions overwrite the ones that no token sees any more.
    """

    blocks: int
    window: int | None = None

    @property
    def suffix(self) -> str:
        """What the names of its inputs end with."""
        return "" if self.window is None else f".{self.window}"

    @property
    def size(self) -> str:
        """Name of its number of blocks in the shapes of its tensors."""
        return "blocks" if self.window is None else f"blocks_{self.window}"


@dataclass(frozen=True)
class Tensor:
    """A tensor of the plan. Its shape's formulas know the step's sizes, of a cache its kind's, of a state `slots`.

    offset: byte in the arena of its program (buffers only); state starts as zeros.
    """

    kind: str
    dtype: str
    shape: tuple[str, ...]
    offset: int = 0

    def dims(self, sizes: Mapping[str, int]) -> tuple[int, ...]:
        return tuple(value(dim, sizes) for dim in self.shape)

    def bytes(self, sizes: Mapping[str, int]) -> int:
        return math.prod(self.dims(sizes)) * KERNEL_DTYPES[self.dtype].bytes


@dataclass(frozen=True)
class MachineCode:
    """A compiled kernel as its launch needs it (CUDA driver API, cuLaunchKernelEx), and where it lies.

    shared: bytes of dynamic shared memory of a block. registers of a thread; spills: bytes that it stores and loads.
    pdl: it waits for its predecessor itself, so that it may be launched before that has ended (programmatic dependent
    launch). Scratch is bytes of a block. Bytes [offset, offset + size) of the profile's cubins are the code; of its PTX
    those from ptx_offset are what it was assembled from, size 0 where there is none.
    """

    entry: str
    shared: int
    registers: int
    spills: int
    pdl: bool = False
    global_scratch: int = 0
    profile_scratch: int = 0
    offset: int = 0
    size: int = 0
    ptx_offset: int = 0
    ptx_size: int = 0


@dataclass(frozen=True)
class Module:
    """A kernel with its constants: one cubin, launched many times. types: of the arguments, in order."""

    kernel: str
    constants: Mapping[str, Any]
    types: tuple[str, ...]
    warps: int
    stages: int
    code: MachineCode | None = None


@dataclass(frozen=True)
class Argument:
    """What a parameter gets: a tensor by name, a size of the step, or a number; exactly one."""

    tensor: str | None = None
    size: str | None = None
    integer: int | None = None
    real: float | None = None

    def resolve(self, tensors: Mapping[str, Any], sizes: Mapping[str, int]) -> Any:
        """What a launch passes: of `tensors` what stands for the tensor, a step's size, or the number."""
        if self.tensor is not None:
            return tensors[self.tensor]
        if self.size is not None:
            return sizes[self.size]
        return self.real if self.integer is None else self.integer


@dataclass(frozen=True)
class Launch:
    """One kernel launch. grid: three formulas. writes: names of tensors. bytes, operations: its price, formulas.

    label: the operator of the graph it computes.
    """

    module: int
    arguments: tuple[Argument, ...]
    grid: tuple[str, ...]
    writes: tuple[str, ...]
    bytes: str
    operations: str
    label: str


@dataclass(frozen=True)
class Program:
    """All launches of one kind of step, for at most `tokens`, `sequences` and `rows`.

    decode: every sequence has one token and one row, padded to `sequences` (so that it is one CUDA graph); otherwise
    sizes are those of the step. arena: bytes of all its buffers.
    """

    decode: bool
    tokens: int
    sequences: int
    rows: int
    arena: int
    buffers: Mapping[str, Tensor]
    launches: tuple[Launch, ...]

    @property
    def limits(self) -> dict[str, int]:
        return {"tokens": self.tokens, "sequences": self.sequences, "rows": self.rows}


@dataclass(frozen=True)
class Plan:
    """A profile's whole plan; programs from small to large, decode before mixed.

    kernels: digest of the kernels' source, so that an interpreter runs the same. tactics: which table of tile sizes.
    max_blocks: block ids per sequence in a table. caches: its kinds, that of all positions first. sm: compute
    capability, 90 for 9.0. pdl: kernels that can are launched before their predecessor in the step has ended.
    """

    sm: int
    activation: str
    max_blocks: int
    caches: tuple[KVCache, ...]
    kernels: str
    tactics: str
    tensors: Mapping[str, Tensor]
    modules: tuple[Module, ...]
    programs: tuple[Program, ...]
    pdl: bool = False
    block_tokens: int = BLOCK_TOKENS
    version: int = field(default=VERSION)

    def to_json(self) -> bytes:
        return canonical(plain(self))

    @staticmethod
    def from_json(text: bytes, *, what: str) -> Plan:
        """Reads and checks a plan; EngineError names what is wrong."""
        plan: Plan = read(Plan, loads(text, what=what, error=EngineError), what)
        if plan.version != VERSION:
            raise EngineError(f"{what}: plan version {VERSION}", found=str(plan.version), fix="build the engine again")
        _check(plan, what)
        return plan

    def blocks_of(self, positions: int) -> dict[str, int]:
        """Blocks that a sequence of `positions` takes of each kind of cache, by the name of the size."""
        return {cache.size: min(-(-positions // BLOCK_TOKENS), cache.blocks) for cache in self.caches}

    def tensor(self, program: Program, name: str) -> Tensor:
        return program.buffers[name] if name in program.buffers else self.tensors[name]

    def program_for(self, *, decode: bool, tokens: int, sequences: int, rows: int) -> Program:
        """The smallest program that holds a step."""
        for program in self.programs:
            fits = program.tokens >= tokens and program.sequences >= sequences and program.rows >= rows
            if fits and program.decode == decode:
                return program
        raise EngineError(
            f"a program for {tokens} tokens of {sequences} sequences", found="none", fix="a smaller max_batch"
        )


def _check(plan: Plan, what: str) -> None:
    """Every name is known, every module exists, every buffer lies in its arena: before anything is allocated."""
    counts = {cache.size: cache.blocks for cache in plan.caches}
    if len(counts) < len(plan.caches) or not all(0 < count <= plan.max_blocks for count in counts.values()):
        found = ", ".join(f"{cache.size} {cache.blocks}" for cache in plan.caches)
        raise EngineError(f"{what}: distinct kinds of cache, each of 1 to {plan.max_blocks} blocks", found=found[:200])
    sizes = dict.fromkeys((*SIZES, *counts, "slots"), 1)
    for index, program in enumerate(plan.programs):
        where = f"{what}: program {index}"
        known = {**plan.tensors, **program.buffers}
        for name, tensor in known.items():
            _check_tensor(tensor, sizes, f"{where}, tensor {name!r}")
        for name, tensor in program.buffers.items():
            if tensor.kind != "buffer" or tensor.offset + tensor.bytes(program.limits) > program.arena:
                raise EngineError(f"{where}: buffer {name!r} inside its arena", found=f"offset {tensor.offset}")
        for formula in {f for one in program.launches for f in (*one.grid, one.bytes, one.operations)}:
            value(formula, program.limits)
        for launch in program.launches:
            if launch.module >= len(plan.modules) or len(launch.grid) != 3:
                raise EngineError(f"{where}: launch {launch.label!r}", found=f"module {launch.module}")
            for argument in launch.arguments:
                _check_argument(argument, known, f"{where}, launch {launch.label!r}")


def _check_tensor(tensor: Tensor, sizes: Mapping[str, int], where: str) -> None:
    if tensor.kind not in get_args(Kind) or tensor.dtype not in KERNEL_DTYPES:
        raise EngineError(f"{where}: kind and dtype", found=f"{tensor.kind}, {tensor.dtype}")
    tensor.dims(sizes)


def _check_argument(argument: Argument, known: Mapping[str, Tensor], where: str) -> None:
    given = [item for item in (argument.tensor, argument.size, argument.integer, argument.real) if item is not None]
    if len(given) != 1:
        raise EngineError(f"{where}: an argument is one thing", found=f"{given}"[:80])
    if argument.tensor is not None and argument.tensor not in known:
        raise EngineError(f"{where}: tensor", found=f"{argument.tensor[:80]!r}{nearest(argument.tensor, known)}")
    if argument.size is not None and argument.size not in SIZES:
        raise EngineError(f"{where}: size", found=f"{argument.size[:80]!r}{nearest(argument.size, SIZES)}")
