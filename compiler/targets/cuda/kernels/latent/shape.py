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
_TILE = 32
"""Positions at a time; of 64, programs of MOST rows spill registers."""


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
    members: int
    """Heads, a power of two."""
    tile: int
    """Positions, a divisor of PAGE."""
    warps: int
    stages: int


def block_for(shape: LatentShape, sm: int, queries: int = 1) -> Block:
    """The block of a chip, for programs that may have up to `queries` queries. It has LEAST or MOST rows.

    A cached row is read once for all heads and queries of a program.
    """
    fills = queries * next_power(shape.heads) >= MOST
    rows = MOST if SHARED[sm] >= _ROOMY and fills else LEAST
    return Block(rows, min(max(next_power(shape.heads), 1), rows), _TILE, 8, 2)


def head_blocks(shape: LatentShape, block: Block) -> int:
    """Programs that share the heads of a query: how often a cached row is read."""
    return -(-shape.heads // block.members)
