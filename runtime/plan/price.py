"""What a plan costs a perfect GPU: bytes and operations of every launch, the cache's part, and the memory it takes."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace

from .budget import CACHE_SHARE, aligned, block_bytes, budget
from .formula import value
from .plan import KVCache, Launch, MachineCode, Plan, Program

CACHE = "KV cache"
"""Label of what attention reads of the positions before the step: no launch's own formulas know how many."""
RESERVED = 1 << 30
"""Bytes of a GPU that its driver and our context take, about: only the driver on the spot knows."""
_PLENTY = 1 << 62
_LAYER = re.compile(r"\.\d+\.")
_SERIAL = re.compile(r"_\d+$")


@dataclass(frozen=True)
class Roofline:
    """The most a GPU can do: bytes/s of its memory, operations/s of its tensor cores."""

    bandwidth: float
    flops: float

    def seconds(self, bytes: int, operations: int) -> float:
        return max(bytes / self.bandwidth, operations / self.flops)


@dataclass(frozen=True)
class Line:
    """`count` equal launches and their price together. code: None of a plan without compiled kernels."""

    label: str
    kernel: str
    grid: tuple[int, ...]
    bytes: int
    operations: int
    seconds: float
    code: MachineCode | None = None
    count: int = 1


@dataclass(frozen=True)
class Price:
    """A step: its launches in order, and last the cache."""

    sizes: Mapping[str, int]
    context: int
    lines: tuple[Line, ...]

    @property
    def bytes(self) -> int:
        return sum(line.bytes for line in self.lines)

    @property
    def operations(self) -> int:
        return sum(line.operations for line in self.lines)

    @property
    def seconds(self) -> float:
        """Launches run one after another: the sum of what each needs at least."""
        return sum(line.seconds for line in self.lines)

    @property
    def tokens_per_s(self) -> float:
        return self.sizes["tokens"] / self.seconds if self.seconds else 0.0


def price(
    plan: Plan, program: Program, roofline: Roofline, *, sizes: Mapping[str, int], context: int, heads: int
) -> Price:
    """What a step of `sizes` costs, with `context` positions of each sequence in the cache before it.

    heads: of queries, each of which reads its cached head.
    """
    lines = [_line(plan, launch, sizes, roofline) for launch in program.launches]
    read = operations = 0
    for cache in plan.caches:
        seen = context if cache.window is None else min(context, cache.window)
        read += block_bytes(plan, cache) // plan.block_tokens * seen * sizes["sequences"]
        # a product and a sum per number of a key or a value, for every head that reads it and every new token
        operations += 2 * heads * _head_sizes(plan, cache) * seen * sizes["tokens"]
    lines.append(Line(CACHE, "", (), read, operations, roofline.seconds(read, operations)))
    return Price(sizes, context, tuple(lines))


def grouped(lines: Iterable[Line]) -> tuple[Line, ...]:
    """Equal launches of all layers as one line, in the order of the first."""
    counts = Counter(replace(line, label=_LAYER.sub(".*.", _SERIAL.sub("", line.label))) for line in lines)
    return tuple(
        replace(line, bytes=line.bytes * n, operations=line.operations * n, seconds=line.seconds * n, count=n)
        for line, n in counts.items()
    )


@dataclass(frozen=True)
class Memory:
    """Bytes of a plan on a device: weights, cache of one sequence at full length, everything else."""

    weights: int
    sequence: int
    buffers: int

    def total(self, sequences: int) -> int:
        return self.weights + self.buffers + self.sequence * sequences

    def sequences(self, room: int) -> int:
        """How many sequences at full length a device of `room` free bytes takes: it keeps a share of the rest."""
        left = max(0, room - self.weights - self.buffers)
        return int(CACHE_SHARE * left) // self.sequence


def usable(memory: int) -> int:
    """What of a GPU's memory is free for a plan."""
    return max(0, memory - RESERVED)


def memory(plan: Plan, *, max_batch: int) -> Memory:
    """What the device will allocate for a plan (`budget.py`).

    Raises:
        EngineError: the plan has no cache.
    """
    weights = sum(aligned(tensor.bytes({})) for tensor in plan.tensors.values() if tensor.kind == "weight")
    parts = budget(plan, weights=weights, slots=max_batch, state_slots=max_batch, free=_PLENTY, what="the profile")
    return Memory(weights, parts.cache // max_batch, parts.fixed - weights)


def _line(plan: Plan, launch: Launch, sizes: Mapping[str, int], roofline: Roofline) -> Line:
    module = plan.modules[launch.module]
    size, operations = value(launch.bytes, sizes), value(launch.operations, sizes)
    grid = tuple(value(formula, sizes) for formula in launch.grid)
    return Line(launch.label, module.kernel, grid, size, operations, roofline.seconds(size, operations), module.code)


def _head_sizes(plan: Plan, cache: KVCache) -> int:
    """Head sizes of a kind's keys and values, summed over its layers."""
    tensors = plan.tensors.values()
    return sum(value(one.shape[3], {}) for one in tensors if one.kind == "cache" and one.shape[0] == cache.size)
