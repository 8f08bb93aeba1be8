"""The GPU memory a plan needs, summed before anything is allocated, so that too little memory is an early error.

Weights, the largest arena, inputs, state and scratch are fixed; the cache gets blocks from the rest.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace

from ..errors import EngineError, ResourceError
from .formula import value
from .plan import BLOCK_TOKENS, KVCache, Plan, Program, Tensor

ALIGNMENT = 256
"""Bytes between tensors that share an allocation: kernels rely on 16, and the driver gives 256."""
CACHE_SHARE = 0.95
"""The cache's share of the memory left by the other parts; modules, graphs and the driver later need the rest."""
_GIB = 2**30


def aligned(nbytes: int) -> int:
    """`nbytes` rounded up to a multiple of ALIGNMENT."""
    return -(-nbytes // ALIGNMENT) * ALIGNMENT


def packed(sizes: Mapping[str, int]) -> tuple[dict[str, int], int]:
    """Aligned offsets of consecutive parts, in order, and their total bytes."""
    offsets, end = {}, 0
    for name, nbytes in sizes.items():
        offsets[name] = end
        end += aligned(nbytes)
    return offsets, end


def tensors_of(plan: Plan, kind: str, sizes: Mapping[str, int]) -> dict[str, int]:
    """Bytes of the plan's tensors of one kind, by name."""
    return {name: tensor.bytes(sizes) for name, tensor in plan.tensors.items() if tensor.kind == kind}


def inputs_of(plan: Plan, program: Program) -> dict[str, Tensor]:
    """The inputs that a program's launches read, by name."""
    read = {name for launch in program.launches for name in launch.tensors}
    return {name: tensor for name, tensor in plan.tensors.items() if tensor.kind == "input" and name in read}


def block_bytes(plan: Plan, cache: KVCache) -> int:
    """Bytes of one block of a cache kind, summed over its layers."""
    of_kind = (tensor for tensor in plan.tensors.values() if tensor.kind == "cache" and tensor.shape[0] == cache.size)
    return sum(tensor.bytes({cache.size: 1}) for tensor in of_kind)


def reachable(plan: Plan, slots: int) -> tuple[Program, ...]:
    """The programs that steps of at most `slots` sequences can choose."""
    decode = sorted(program.sequences for program in plan.programs if program.decode)
    enough = next((sequences for sequences in decode if sequences >= slots), decode[-1] if decode else 0)
    return tuple(program for program in plan.programs if not program.decode or program.sequences <= enough)


def scratch_of(plan: Plan, program: Program, sizes: Mapping[str, int]) -> tuple[int, int]:
    """Bytes of global and of profile scratch: the largest need of any launch, since launches share the scratch."""
    most = [0, 0]
    for launch in program.kernels:
        code = plan.modules[launch.module].code
        if code is not None and (code.global_scratch or code.profile_scratch):
            blocks = math.prod(value(formula, sizes) for formula in launch.grid)
            most = [max(most[0], blocks * code.global_scratch), max(most[1], blocks * code.profile_scratch)]
    return most[0], most[1]


@dataclass(frozen=True)
class Budget:
    """Bytes of each part of a plan's memory."""

    weights: int
    arena: int
    inputs: int
    state: int
    scratch: tuple[int, int]
    """Global and profile scratch."""
    block: Mapping[str, int]
    """Bytes of one block over all layers, by the size name of its cache kind."""
    blocks: Mapping[str, int]
    """Number of blocks, by the same name."""

    @property
    def fixed(self) -> int:
        """Bytes of everything except the cache."""
        return sum(map(aligned, (self.weights, self.arena, self.inputs, self.state, *self.scratch)))

    @property
    def cache(self) -> int:
        """Bytes of the cache."""
        return sum(self.block[size] * count for size, count in self.blocks.items())

    def text(self) -> str:
        """The parts and their sizes as text, largest first."""
        parts = {
            "weights": self.weights,
            "activations": self.arena,
            "scratch": sum(self.scratch),
            "inputs and state": self.inputs + self.state,
        }
        for size, count in self.blocks.items():
            window = size.removeprefix("blocks").replace("_", " in windows of ")
            parts[f"cache of {count * BLOCK_TOKENS} positions{window}"] = self.block[size] * count
        return ", ".join(
            f"{name} {gib(size)}" for name, size in sorted(parts.items(), key=lambda part: -part[1]) if size
        )


def budget(plan: Plan, *, weights: int, slots: int, state_slots: int, free: int, what: str) -> Budget:
    """Divide `free` bytes for at most `slots` sequences at once, with `weights` bytes of weights.

    Cache kinds divide the rest in the ratio of their blocks in one sequence at full context. `state_slots` is the
    number of slots that state tensors have; `what` names the profile in errors.

    Raises:
        ResourceError: one sequence at full context does not fit; names the smallest change that makes it fit.
        EngineError: the plan has no cache.
    """
    parts = without_cache(plan, weights, slots, state_slots)
    if not all(parts.block.values()) or not parts.block:
        raise EngineError(f"expected a plan with a KV cache in {what}", found="none", fix="build the engine again")
    full = {cache.size: cache.blocks for cache in plan.caches}
    needed = replace(parts, blocks=full)
    if (divided := with_cache(parts, full, slots, free)) is not None:
        return divided
    raise ResourceError(
        f"cannot allocate {gib(needed.fixed + needed.cache)} of GPU memory for {what} ({needed.text()})",
        found=f"{gib(free)} free",
        fix=_smallest_change(plan, weights, slots, state_slots, free),
    )


def gib(nbytes: int) -> str:
    """Bytes as text in GiB, or in MiB below 0.01 GiB."""
    return f"{nbytes / _GIB:.2f} GiB" if nbytes >= _GIB // 100 else f"{nbytes / 2**20:.2f} MiB"


def without_cache(plan: Plan, weights: int, slots: int, state_slots: int) -> Budget:
    """The fixed parts for at most `slots` sequences at once, and the bytes of a block of each cache kind."""
    programs = reachable(plan, slots) + (() if plan.setup is None else (plan.setup,))
    scratch = [scratch_of(plan, program, program.limits) for program in programs]
    return Budget(
        weights=weights,
        arena=max((program.arena for program in programs), default=0),
        inputs=max((_input_bytes(plan, program) for program in programs), default=0),
        state=packed(tensors_of(plan, "state", {"slots": state_slots}))[1],
        scratch=(max((one for one, _ in scratch), default=0), max((other for _, other in scratch), default=0)),
        block={cache.size: block_bytes(plan, cache) for cache in plan.caches},
        blocks={},
    )


def with_cache(parts: Budget, full: Mapping[str, int], slots: int, free: int) -> Budget | None:
    """The parts with the blocks that `free` bytes leave; None if one sequence at full context does not fit.

    `full` is the number of blocks of one sequence at full context, by the size name of its cache kind.
    """
    needed, room = replace(parts, blocks=full).cache, _room(parts, free)
    if room < needed:
        return None
    return replace(parts, blocks={size: min(room * count // needed, slots * count) for size, count in full.items()})


def _input_bytes(plan: Plan, program: Program) -> int:
    return packed({name: tensor.bytes(program.limits) for name, tensor in inputs_of(plan, program).items()})[1]


def _room(parts: Budget, free: int) -> int:
    """Bytes left for the cache; negative if the fixed parts alone do not fit."""
    return math.floor(CACHE_SHARE * (free - parts.fixed))


def _smallest_change(plan: Plan, weights: int, slots: int, state_slots: int, free: int) -> str:
    def fits(sequences: int, blocks: int) -> bool:
        parts = without_cache(plan, weights, sequences, state_slots)
        return replace(parts, blocks=plan.blocks_of(blocks * BLOCK_TOKENS)).cache <= _room(parts, free)

    for fewer in range(slots - 1, 0, -1):
        if fits(fewer, plan.max_blocks):
            return f"--max-batch {fewer}"
    for blocks in range(plan.max_blocks - 1, 0, -1):
        if fits(slots, blocks):
            return f"an engine built with --max-context {blocks * BLOCK_TOKENS}"
    return "a GPU with more memory, or an engine with smaller weights (--quantize int4)"
