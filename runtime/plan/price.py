"""The price of a plan on an ideal GPU: bytes and operations of every launch, cache reads, and memory needed."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace

from .between import Collective
from .budget import CACHE_SHARE, aligned, budget
from .copies import in_steps, kept
from .formula import value
from .plan import KVCache, Launch, MachineCode, Plan, Program, Tensor

CACHE = "KV cache"
"""Label for attention's reads of positions before the step; launch formulas do not include them, as they depend on the
context."""
RESERVED = 1 << 30
"""Estimate of the bytes of a GPU that its driver and our context use; only that GPU's driver knows the number."""
RESERVED_BY_NCCL = 400 << 20
"""Bytes of each GPU that NCCL takes in a job of several ranks: AIConfigurator measured 342 to 392 MB for 2 to 8."""
_PLENTY = 1 << 62
_LAYER = re.compile(r"\.\d+\.")
_SERIAL = re.compile(r"_\d+$")


@dataclass(frozen=True)
class Roofline:
    """The limits of a GPU."""

    bandwidth: float
    """Bytes/s of its memory."""
    flops: float
    """Operations/s of its tensor cores on 16-bit numbers."""
    narrow: Mapping[str, float] = field(default_factory=dict)
    """Operations/s by kernel, of those that multiply narrower ones."""

    def seconds(self, bytes: int, operations: int, kernel: str = "") -> float:
        return max(bytes / self.bandwidth, operations / self.narrow.get(kernel, self.flops))

    def is_memory_bound(self, line: Line) -> bool:
        return line.bytes / self.bandwidth >= line.operations / self.narrow.get(line.kernel, self.flops)


@dataclass(frozen=True)
class Line:
    """`count` equal launches and their total price; `code` is None in a plan without compiled kernels.

    A collective has the name of its operator as `kernel`, and no grid.
    """

    label: str
    kernel: str
    grid: tuple[int, ...]
    bytes: int
    operations: int
    seconds: float
    code: MachineCode | None = None
    count: int = 1
    link_bytes: int = 0
    """Bytes that pass the link to other ranks; they are no part of `bytes`, nor of `seconds`."""


@dataclass(frozen=True)
class Price:
    """The price of a step: its launches in order, then the cache."""

    sizes: Mapping[str, int]
    context: int
    lines: tuple[Line, ...]

    @property
    def bytes(self) -> int:
        return sum(line.bytes for line in self.lines)

    @property
    def link_bytes(self) -> int:
        return sum(line.link_bytes for line in self.lines)

    @property
    def operations(self) -> int:
        return sum(line.operations for line in self.lines)

    @property
    def seconds(self) -> float:
        """The sum of every launch's lower bound, since launches run one after another."""
        return sum(line.seconds for line in self.lines)

    @property
    def tokens_per_s(self) -> float:
        return self.sizes["tokens"] / self.seconds if self.seconds else 0.0


def price(
    plan: Plan, program: Program, roofline: Roofline, *, sizes: Mapping[str, int], context: int, heads: int
) -> Price:
    """The price of a step of `sizes`, when the cache holds `context` positions per sequence.

    `heads` is the number of query heads; each reads its cached head.
    """
    lines = [line_of(plan, launch, sizes, roofline) for launch in program.launches]
    read = operations = 0
    for cache in plan.caches:
        tensors = [one for one in plan.tensors.values() if one.kind == "cache" and one.shape[0] == cache.size]
        seen = seen_of(cache, context)
        read += position_bytes(plan, cache, tensors) * seen * sizes["sequences"]
        operations += position_operations(tensors, heads, cache.rank) * seen * sizes["tokens"]
    lines.append(Line(CACHE, "", (), read, operations, roofline.seconds(read, operations)))
    return Price(sizes, context, tuple(lines))


def grouped(lines: Iterable[Line]) -> tuple[Line, ...]:
    """Merge equal launches of all layers into one line, in the order of their first."""
    counts = Counter(replace(line, label=_LAYER.sub(".*.", _SERIAL.sub("", line.label))) for line in lines)
    return tuple(
        replace(
            line,
            bytes=line.bytes * n,
            operations=line.operations * n,
            seconds=line.seconds * n,
            link_bytes=line.link_bytes * n,
            count=n,
        )
        for line, n in counts.items()
    )


@dataclass(frozen=True)
class Memory:
    """Bytes of a plan on a device."""

    weights: int
    sequence: int
    """The cache of one sequence at full length."""
    buffers: int
    """Everything else."""

    def total(self, sequences: int) -> int:
        return self.weights + self.buffers + self.sequence * sequences

    def sequences(self, room: int) -> int:
        """Sequences at full length that fit into `room` free bytes; the cache gets CACHE_SHARE of the rest."""
        left = max(0, room - self.weights - self.buffers)
        return int(CACHE_SHARE * left) // self.sequence


def usable(memory: int, ranks: int = 1) -> int:
    """Bytes of a GPU's `memory` that a plan can use, in a job of so many ranks."""
    return max(0, memory - RESERVED - (RESERVED_BY_NCCL if ranks > 1 else 0))


def memory(plan: Plan, *, max_batch: int) -> Memory:
    """The memory that a device allocates for a plan (`budget.py`).

    Raises:
        EngineError: the plan has no cache.
    """
    weights = sum(aligned(tensor.bytes({})) for tensor in plan.tensors.values() if tensor.kind == "weight")
    parts = budget(plan, weights=weights, slots=max_batch, state_slots=max_batch, free=_PLENTY, what="the profile")
    return Memory(weights, parts.cache // max_batch, parts.fixed - weights)


def memory_on(room: int, plan: Plan, *, max_batch: int) -> Memory:
    """The memory of a plan on a device with `room` free bytes, which may have none for copies of weights."""
    need = memory(plan, max_batch=max_batch)
    if plan.setup is None:
        return need
    lean = memory(in_steps(plan), max_batch=max_batch)
    counts = [{"": min(one.sequences(room), max_batch)} for one in (need, lean)]
    return need if kept(*(one if one[""] else None for one in counts)) else lean


def seen_of(cache: KVCache, context: int) -> int:
    """Positions before the step that a token reads, of `context`."""
    return context if cache.window is None else min(context, cache.window)


def position_bytes(plan: Plan, cache: KVCache, tensors: Iterable[Tensor]) -> int:
    """Bytes of one position in these tensors of a cache kind."""
    return sum(tensor.bytes({cache.size: 1}) for tensor in tensors) // plan.block_tokens


def position_operations(tensors: Iterable[Tensor], heads: int, rank: int | None = None) -> int:
    """Operations of one new token with one position of these cache tensors.

    A multiplication and an addition per element of a key or value, for each of `heads` query heads. A row of latent
    attention is a key, and its first `rank` numbers are a value.
    """
    return 2 * heads * sum(value(one.shape[3], {}) + (rank or 0) for one in tensors)


def line_of(plan: Plan, launch: Launch | Collective, sizes: Mapping[str, int], roofline: Roofline) -> Line:
    """The price of one launch."""
    size, operations = value(launch.bytes, sizes), value(launch.operations, sizes)
    if isinstance(launch, Collective):
        link, seconds = value(launch.link_bytes, sizes), roofline.seconds(size, operations)
        return Line(launch.label, launch.collective, (), size, operations, seconds, link_bytes=link)
    module = plan.modules[launch.module]
    seconds = roofline.seconds(size, operations, module.kernel)
    grid = tuple(value(formula, sizes) for formula in launch.grid)
    return Line(launch.label, module.kernel, grid, size, operations, seconds, module.code)
