"""The value that every choice of a linear's block sizes is: by a heuristic, by a table, or by hand."""

from __future__ import annotations

from dataclasses import dataclass

TRITON, NATIVE = ROUTES = ("triton", "native")
"""What a linear's kernel is made of: Triton, or CUDA C++ where that is measured to be faster."""


@dataclass(frozen=True)
class Tile:
    """A linear's block sizes (weight rows, columns of K, tokens), parts of K, and a program's warps and stages."""

    block_n: int
    block_k: int
    block_m: int
    splits: int = 1
    warps: int = 4
    stages: int = 1
    route: str = TRITON

    def span(self, k: int) -> int:
        """Columns of each part of K; the last part may have fewer.

        Raises:
            ValueError: a part would be empty.
        """
        blocks = -(-k // self.block_k)
        span = -(-blocks // self.splits)
        if -(-blocks // span) != self.splits:
            raise ValueError(f"K = {k} in blocks of {self.block_k} does not divide into {self.splits} parts")
        return span * self.block_k
