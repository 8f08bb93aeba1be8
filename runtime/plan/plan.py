"""The launch plan of a profile: buffers with offsets, launches with grids and prices; data that needs no device."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from ..dtypes import KERNEL_DTYPES
from ..errors import EngineError, nearest
from ..files.records import plain, read
from ..files.strict_json import canonical, loads
from .between import ALONE, Collective, RankOf, check_collective, check_rank
from .formula import SIZES, value

BLOCK_TOKENS = 64
"""Positions per block of the paged KV cache."""
VERSION = 4
READ = (3, VERSION)
"""Versions that are read: 3 had no setup."""
KINDS = ("weight", "cache", "input", "state", "buffer")
"""Read from the engine; a layer's keys or values; filled before each step; kept between steps; used by one program."""


@dataclass(frozen=True)
class KVCache:
    """A cache kind: the cache of all layers with the same window."""

    blocks: int
    """Most blocks of one sequence. The blocks of a window are a ring: entry i of a block table is block i % blocks of
    the sequence, so the latest positions overwrite positions outside the window."""
    window: int | None = None
    """Positions that a token attends to, itself included; None: all."""
    rank: int | None = None
    """Of latent attention: numbers of a cached row that are values too; None: values have tensors of their own."""

    @property
    def suffix(self) -> str:
        """The suffix of its inputs' names."""
        return "" if self.window is None else f".{self.window}"

    @property
    def size(self) -> str:
        """The name for its number of blocks in the shapes of its tensors."""
        return "blocks" if self.window is None else f"blocks_{self.window}"


@dataclass(frozen=True)
class Tensor:
    """A tensor of the plan; state starts as zeros."""

    kind: str
    """One of KINDS."""
    dtype: str
    shape: tuple[str, ...]
    """Formulas over the step's sizes; of a cache also over its kind's `size`, of a state over `slots`."""
    offset: int = 0
    """Byte in the arena of its program (buffers only)."""

    def dims(self, sizes: Mapping[str, int]) -> tuple[int, ...]:
        return tuple(value(dim, sizes) for dim in self.shape)

    def bytes(self, sizes: Mapping[str, int]) -> int:
        return math.prod(self.dims(sizes)) * KERNEL_DTYPES[self.dtype].bytes


@dataclass(frozen=True)
class MachineCode:
    """A compiled kernel: what its launch needs (CUDA driver API, cuLaunchKernelEx), and the location of its code."""

    entry: str
    shared: int
    """Bytes of dynamic shared memory per block."""
    registers: int
    """Registers per thread."""
    spills: int
    """Bytes of spilled registers that a thread stores and loads."""
    pdl: bool = False
    """True if the kernel waits for its predecessor itself, so that it may be launched before the predecessor has ended
    (programmatic dependent launch)."""
    global_scratch: int = 0
    """Bytes per block; `profile_scratch` too."""
    profile_scratch: int = 0
    offset: int = 0
    """First byte of the code in the profile's cubins."""
    size: int = 0
    ptx_offset: int = 0
    """First byte in the profile's PTX of the text that the code was assembled from."""
    ptx_size: int = 0
    """0 if the profile has no PTX for it."""


@dataclass(frozen=True)
class Module:
    """A kernel with its constants: one cubin, launched many times."""

    kernel: str
    constants: Mapping[str, Any]
    types: tuple[str, ...]
    """Types of the arguments, in order."""
    warps: int
    stages: int
    code: MachineCode | None = None


@dataclass(frozen=True)
class Argument:
    """The value of a parameter: a tensor by name, a size of the step, or a number; exactly one field is set."""

    tensor: str | None = None
    size: str | None = None
    integer: int | None = None
    real: float | None = None

    def resolve(self, tensors: Mapping[str, Any], sizes: Mapping[str, int]) -> Any:
        """The value a launch passes: the entry of `tensors` for its tensor, the step's size, or the number."""
        if self.tensor is not None:
            return tensors[self.tensor]
        if self.size is not None:
            return sizes[self.size]
        return self.real if self.integer is None else self.integer


@dataclass(frozen=True)
class Launch:
    """One kernel launch."""

    module: int
    """Index among the plan's modules."""
    arguments: tuple[Argument, ...]
    grid: tuple[str, ...]
    """Three formulas."""
    writes: tuple[str, ...]
    """Names of tensors."""
    bytes: str
    """Formula of the bytes it reads and writes."""
    operations: str
    """Formula of its arithmetic operations."""
    label: str
    """The operator of the graph that it computes."""

    @cached_property
    def tensors(self) -> tuple[str, ...]:
        """Names of the tensors that it uses."""
        return tuple(one.tensor for one in self.arguments if one.tensor is not None)


@dataclass(frozen=True)
class Program:
    """All launches of one kind of step, for at most `tokens`, `sequences` and `rows`."""

    decode: bool
    """True: every sequence has one token and one row, padded to `sequences`, so that the program is one CUDA graph.
    False: launches use the sizes of the step."""
    tokens: int
    sequences: int
    rows: int
    arena: int
    """Bytes of all its buffers."""
    buffers: Mapping[str, Tensor]
    launches: tuple[Launch | Collective, ...]
    """In the order of the stream."""

    @property
    def limits(self) -> dict[str, int]:
        return {"tokens": self.tokens, "sequences": self.sequences, "rows": self.rows}

    @property
    def kernels(self) -> tuple[Launch, ...]:
        """Its launches without the exchanges between ranks; those of a plan of one rank are all."""
        return tuple(one for one in self.launches if isinstance(one, Launch))


@dataclass(frozen=True)
class Plan:
    """A profile's whole plan."""

    sm: int
    """Compute capability, 90 for 9.0."""
    activation: str
    max_blocks: int
    """Block ids per sequence in a block table."""
    caches: tuple[KVCache, ...]
    """The kind without a window first."""
    kernels: str
    """Digest of the kernels' source, so that an interpreter runs the same kernels."""
    tactics: str
    """The table of tile sizes that the plan was made with."""
    tensors: Mapping[str, Tensor]
    modules: tuple[Module, ...]
    programs: tuple[Program, ...]
    """From small to large, decode programs before mixed ones."""
    pdl: bool = False
    """True: kernels with `MachineCode.pdl` are launched before their predecessor in the step has ended."""
    rotary: tuple[int, ...] | None = None
    """Pairs of a head that each rope rotates whose tables are inputs, because they depend on the sequence's length."""
    block_tokens: int = BLOCK_TOKENS
    version: int = field(default=VERSION)
    rank_of: RankOf | None = None
    """None: there are no other ranks."""
    setup: Program | None = None
    """Launches that compute state from weights: they run once, when the weights are in place."""

    @property
    def rank(self) -> RankOf:
        return self.rank_of or ALONE

    def to_json(self) -> bytes:
        return canonical(plain(self))

    @staticmethod
    def from_json(text: bytes, *, what: str) -> Plan:
        """Read and check a plan, called `what` in errors.

        Raises:
            EngineError: the plan is not valid; names the first invalid part.
        """
        plan: Plan = read(Plan, loads(text, what=what, error=EngineError), what)
        if plan.version not in READ:
            raise EngineError(
                f"expected plan version {' or '.join(map(str, READ))} in {what}",
                found=str(plan.version),
                fix="build the engine again",
            )
        _check(plan, what)
        return plan

    def blocks_of(self, positions: int) -> dict[str, int]:
        """Blocks of each cache kind that a sequence of `positions` needs, by the name of the size."""
        return {cache.size: min(-(-positions // BLOCK_TOKENS), cache.blocks) for cache in self.caches}

    def tensor(self, program: Program, name: str) -> Tensor:
        return program.buffers[name] if name in program.buffers else self.tensors[name]

    def program_for(self, *, decode: bool, tokens: int, sequences: int, rows: int) -> Program:
        """The smallest program that holds a step.

        Raises:
            EngineError: the step exceeds every program.
        """
        for program in self.programs:
            fits = program.tokens >= tokens and program.sequences >= sequences and program.rows >= rows
            if fits and program.decode == decode:
                return program
        raise EngineError(
            f"expected a program for {tokens} tokens of {sequences} sequences", found="none", fix="a smaller max_batch"
        )


def _check(plan: Plan, what: str) -> None:
    """Check, before anything is allocated, that names and modules exist and that buffers lie inside their arenas."""
    rank = plan.rank
    check_rank(rank, what)
    counts = {cache.size: cache.blocks for cache in plan.caches}
    if len(counts) < len(plan.caches) or not all(0 < count <= plan.max_blocks for count in counts.values()):
        found = ", ".join(f"{cache.size} {cache.blocks}" for cache in plan.caches)
        kinds = f"distinct kinds of cache in {what}, each of 1 to {plan.max_blocks} blocks"
        raise EngineError(f"expected {kinds}", found=found[:200])
    sizes = dict.fromkeys((*SIZES, *counts, "slots"), 1)
    setup = [] if plan.setup is None else [("the setup", plan.setup)]
    for name, program in [*setup, *((f"program {index}", program) for index, program in enumerate(plan.programs))]:
        where = f"{name} of {what}"
        known = {**plan.tensors, **program.buffers}
        for name, tensor in known.items():
            _check_tensor(tensor, sizes, f"tensor {name!r} of {where}")
        for name, tensor in program.buffers.items():
            if tensor.kind != "buffer" or tensor.offset + tensor.bytes(program.limits) > program.arena:
                found = f"offset {tensor.offset}"
                raise EngineError(f"expected buffer {name!r} inside the arena of {where}", found=found)
        for formula in {f for one in program.kernels for f in (*one.grid, one.bytes, one.operations)}:
            value(formula, program.limits)
        for launch in program.launches:
            if isinstance(launch, Collective):
                check_collective(
                    launch, rank, program.buffers, program.limits, f"collective {launch.label!r} of {where}"
                )
                continue
            if launch.module >= len(plan.modules) or len(launch.grid) != 3:
                wanted = f"one of {len(plan.modules)} modules and a grid of 3 in launch {launch.label!r}"
                raise EngineError(f"expected {wanted} of {where}", found=f"module {launch.module}")
            for argument in launch.arguments:
                _check_argument(argument, known, f"launch {launch.label!r} of {where}")


def _check_tensor(tensor: Tensor, sizes: Mapping[str, int], where: str) -> None:
    if tensor.kind not in KINDS or tensor.dtype not in KERNEL_DTYPES:
        raise EngineError(f"expected a known kind and dtype of {where}", found=f"{tensor.kind}, {tensor.dtype}")
    tensor.dims(sizes)


def _check_argument(argument: Argument, known: Mapping[str, Tensor], where: str) -> None:
    given = [item for item in (argument.tensor, argument.size, argument.integer, argument.real) if item is not None]
    if len(given) != 1:
        raise EngineError(f"expected one value per argument in {where}", found=f"{given}"[:80])
    if argument.tensor is not None and argument.tensor not in known:
        found = f"{argument.tensor[:80]!r}{nearest(argument.tensor, known)}"
        raise EngineError(f"expected a known tensor in {where}", found=found)
    if argument.size is not None and argument.size not in SIZES:
        found = f"{argument.size[:80]!r}{nearest(argument.size, SIZES)}"
        raise EngineError(f"expected a known size in {where}", found=found)
