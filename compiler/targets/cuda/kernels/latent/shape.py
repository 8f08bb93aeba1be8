"""The sizes of latent attention, and how much of it a program has: the same for all its kernels."""

from __future__ import annotations

from dataclasses import dataclass

from ......runtime.chips import SHARED
from ...call import next_power

PAGE = 64
LEAST = 16
"""Fewest rows of a tensor-core product."""
MOST = 64
"""Most rows of a program: its sums of 512 columns fill half of the registers of a multiprocessor."""
_ROOMY = 200 << 10
"""Bytes of shared memory with which a program can have MOST rows: chips that have it read both operands from there."""


@dataclass(frozen=True)
class LatentShape:
    """Letters of `passes/graph/latent.py`: A heads, N and R elements of a head of q, V of a value, the latent's L."""

    heads: int
    nope: int
    rope: int
    value: int
    rank: int

    @property
    def row(self) -> int:
        """Numbers of a cached row."""
        return self.rank + self.rope

    @property
    def head(self) -> int:
        """Elements of a head of q."""
        return self.nope + self.rope

    @property
    def dim(self) -> int:
        return max(next_power(self.rank), LEAST)

    @property
    def turn(self) -> int:
        return max(next_power(self.rope), LEAST)


@dataclass(frozen=True)
class Block:
    """What a program of attention has at a time."""

    rows: int
    """Heads x queries."""
    tile: int
    """Positions, a divisor of PAGE."""
    warps: int
    stages: int


def block_for(shape: LatentShape, sm: int) -> Block:
    """The block of a chip. A cached row is read once for all heads of a program."""
    roomy = SHARED[sm] >= _ROOMY
    rows = min(max(next_power(shape.heads), LEAST), MOST if roomy else LEAST)
    return Block(rows, PAGE if roomy else 32, 8, 2 if roomy else 1)


def head_blocks(shape: LatentShape, block: Block) -> int:
    """Programs that share the heads of a query: how often a cached row is read."""
    return -(-shape.heads // block.rows)
