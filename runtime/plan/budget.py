"""What a plan takes of a GPU's memory, summed before anything is allocated: too little is said at once, with a way out.

Weights, the largest arena, inputs, state and scratch are fixed; the cache gets blocks from what is left.
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
"""Of what is left after everything else; modules, graphs and the driver itself take a little more later."""
_GIB = 2**30


def aligned(nbytes: int) -> int:
    """The next multiple of the alignment."""
    return -(-nbytes // ALIGNMENT) * ALIGNMENT


def packed(sizes: Mapping[str, int]) -> tuple[dict[str, int], int]:
    """Aligned offsets of parts that lie one after the other, in order, and the bytes of all."""
    offsets, end = {}, 0
    for name, nbytes in sizes.items():
        offsets[name] = end
        end += aligned(nbytes)
    return offsets, end


def tensors_of(plan: Plan, kind: str, sizes: Mapping[str, int]) -> dict[str, int]:
    """Bytes of the plan's tensors of a kind, by name."""
    return {name: tensor.bytes(sizes) for name, tensor in plan.tensors.items() if tensor.kind == kind}


def inputs_of(plan: Plan, program: Program) -> dict[str, Tensor]:
    """The inputs that a program's launches read, by name."""
    read = {argument.tensor for launch in program.launches for argument in launch.arguments}
    return {name: tensor for name, tensor in plan.tensors.items() if tensor.kind == "input" and name in read}


def block_bytes(plan: Plan, cache: KVCache) -> int:
    """Bytes of one block of a kind of cache over all its layers."""
    of_kind = (tensor for tensor in plan.tensors.values() if tensor.kind == "cache" and tensor.shape[0] == cache.size)
    return sum(tensor.bytes({cache.size: 1}) for tensor in of_kind)


def reachable(plan: Plan, slots: int) -> tuple[Program, ...]:
    """The programs that steps of at most `slots` sequences can choose."""
    decode = sorted(program.sequences for program in plan.programs if program.decode)
    enough = next((sequences for sequences in decode if sequences >= slots), decode[-1] if decode else 0)
    return tuple(program for program in plan.programs if not program.decode or program.sequences <= enough)


def scratch_of(plan: Plan, program: Program, sizes: Mapping[str, int]) -> tuple[int, int]:
    """Bytes of global and of profile scratch that the hungriest launch needs; launches take turns with it."""
    most = [0, 0]
    for launch in program.launches:
        code = plan.modules[launch.module].code
        if code is not None and (code.global_scratch or code.profile_scratch):
            blocks = math.prod(value(formula, sizes) for formula in launch.grid)
            most = [max(most[0], blocks * code.global_scratch), max(most[1], blocks * code.profile_scratch)]
    return most[0], most[1]


@dataclass(frozen=True)
class Budget:
    """Bytes of each part. Of each kind of cache, by the name of its size: bytes of a `block` over all layers, and how
    many `blocks`."""

    weights: int
    arena: int
    inputs: int
    state: int
    scratch: tuple[int, int]
    block: Mapping[str, int]
    blocks: Mapping[str, int]

    @property
    def fixed(self) -> int:
        """Bytes of all but the cache."""
        return sum(map(aligned, (self.weights, self.arena, self.inputs, self.state, *self.scratch)))

    @property
    def cache(self) -> int:
        """Bytes of the cache."""
        return sum(self.block[size] * count for size, count in self.blocks.items())

    def text(self) -> str:
        """The parts by size, largest first."""
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
    """What to allocate of `free` bytes for at most `slots` sequences at once; `weights` bytes are theirs.

    Kinds of cache share what is left as they share a sequence at full context.

    Raises:
        ResourceError: not even one sequence at full context fits; names the smallest change that would do.
        EngineError: the plan has no cache.
    """
    parts = _without_cache(plan, weights, slots, state_slots)
    if not all(parts.block.values()) or not parts.block:
        raise EngineError(f"{what}: a plan with a KV cache", found="none", fix="build the engine again")
    full = {cache.size: cache.blocks for cache in plan.caches}
    needed, room = replace(parts, blocks=full), _room(parts, free)
    if room >= needed.cache:
        shares = {size: min(room * count // needed.cache, slots * count) for size, count in full.items()}
        return replace(parts, blocks=shares)
    raise ResourceError(
        f"{what}: {gib(needed.fixed + needed.cache)} of GPU memory ({needed.text()})",
        found=f"{gib(free)} free",
        fix=_way_out(plan, weights, slots, state_slots, free),
    )


def gib(nbytes: int) -> str:
    """Bytes as people read them."""
    return f"{nbytes / _GIB:.2f} GiB" if nbytes >= _GIB // 100 else f"{nbytes / 2**20:.2f} MiB"


def _without_cache(plan: Plan, weights: int, slots: int, state_slots: int) -> Budget:
    programs = reachable(plan, slots)
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


def _input_bytes(plan: Plan, program: Program) -> int:
    return packed({name: tensor.bytes(program.limits) for name, tensor in inputs_of(plan, program).items()})[1]


def _room(parts: Budget, free: int) -> int:
    """Bytes that are left for the cache; below 0 if the rest alone is too much."""
    return math.floor(CACHE_SHARE * (free - parts.fixed))


def _way_out(plan: Plan, weights: int, slots: int, state_slots: int, free: int) -> str:
    def fits(sequences: int, blocks: int) -> bool:
        parts = _without_cache(plan, weights, sequences, state_slots)
        return replace(parts, blocks=plan.blocks_of(blocks * BLOCK_TOKENS)).cache <= _room(parts, free)

    for fewer in range(slots - 1, 0, -1):
        if fits(fewer, plan.max_blocks):
            return f"--max-batch {fewer}"
    for blocks in range(plan.max_blocks - 1, 0, -1):
        if fits(slots, blocks):
            return f"an engine built with --max-context {blocks * BLOCK_TOKENS}"
    return "a GPU with more memory, or an engine with smaller weights (--quantize int4)"
