"""Tiles of linears of more than 64 tokens: of those that no chip spills, the one that a model of waves finds fastest.

The model knows what a tile's shape decides: how often operands pass from L2 to a multiprocessor, and how well programs
fill the chip. A chip that its programs do not fill once reads weights at a part of its speed, so a tile that does is
taken before any other.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from ......runtime.chips import MULTIPROCESSORS, SHARED, Chip, chip
from .dequantize import GROUP, PER_WORD, chunk
from .shape import Tile

_L2 = 50e9
"""Bytes/s from L2 to one multiprocessor: 32 bytes a cycle, less what is lost to conflicts."""
_START = 2e-6
"""Seconds that a program takes besides its products: its first loads, the store of its results."""
_SPLITS = (1, 2, 3, 4, 5, 6, 8)
_LEAST_SPAN = 512
"""Fewest columns of a part of K."""
_MOST_SUMS = 16 << 20
"""Most bytes of the sums of all parts: they are to stay in L2 until they are added."""


def tile_for_many(kind: str, n: int, k: int, format: str, max_tokens: int, sm: int) -> Tile:
    """The tile of a linear [n, k] in steps of up to max_tokens; kind is "large" or "fp8"."""
    candidates = [tile for whole in _candidates(kind, format, sm) for tile in _in_parts(whole, n, k, max_tokens)]
    device = chip(sm)

    def cost(tile: Tile) -> tuple[float, float]:
        programs = _programs(tile, n, max_tokens)
        wave = device.processors * _resident(tile, kind, format, sm)
        return -min(programs / wave, 1.0), _seconds(tile, kind, n, k, format, max_tokens, device)

    return min(candidates, key=cost)


def _candidates(kind: str, format: str, sm: int) -> tuple[Tile, ...]:
    """Tiles of one part of K that do not spill on the chip, the largest first."""
    roomy, small = SHARED[sm] > 200 << 10, SHARED[sm] <= 100 << 10
    if kind == "fp8":
        stages = 2 if small else 4
        sizes = ((128, 256, 8), (128, 128, 8), (128, 64, 8), (64, 128, 4), (64, 64, 4))
        return tuple(Tile(n, 128, m, 1, warps, stages) for n, m, warps in sizes if roomy or m < 256)
    if format == "dense":
        stages = 4 if roomy else 3
        sizes = ((128, 256, 8), (128, 128, 8), (64, 128, 4), (64, 64, 4))
        return tuple(Tile(n, 64, m, 1, warps, stages) for n, m, warps in sizes if roomy or m < 256)
    # Scales of 128 columns are applied to a separate sum: twice the registers, which mma.sync cannot spare.
    most = 128 if roomy or GROUP[format] < 128 else 64
    return tuple(Tile(n, chunk(format), m, 1, warps, 1) for n, m, warps in ((128, most, 8), (64, 64, 4)))


def _in_parts(tile: Tile, n: int, k: int, tokens: int) -> Iterator[Tile]:
    blocks = -(-k // tile.block_k)
    for splits in _SPLITS:
        span = -(-blocks // splits)
        divides = -(-blocks // span) == splits and span * tile.block_k >= _LEAST_SPAN
        roomy = tile.block_m < 256 and 4 * splits * tokens * n <= _MOST_SUMS
        if splits == 1 or (divides and roomy):
            yield replace(tile, splits=splits)


def _programs(tile: Tile, n: int, tokens: int) -> int:
    return -(-n // tile.block_n) * -(-tokens // tile.block_m) * tile.splits


def _staged(tile: Tile, kind: str, format: str) -> tuple[float, float]:
    """Bytes of a column of the tile's weights, and of its activations."""
    weight = 1.0 if kind == "fp8" else 2.0 if format == "dense" else 4 / PER_WORD[format]
    return tile.block_n * weight, tile.block_m * (1.0 if kind == "fp8" else 2.0)


def _resident(tile: Tile, kind: str, format: str, sm: int) -> int:
    """Programs that a multiprocessor holds at a time, by an estimate of registers and shared memory."""
    threads = 32 * tile.warps
    registers = min(255, tile.block_n * tile.block_m // threads + 104)
    weights, activations = _staged(tile, kind, format)
    copied = activations if tile.stages == 1 else weights + activations
    return MULTIPROCESSORS[sm].resident(threads, registers, int(max(tile.stages, 1) * tile.block_k * copied))


def _seconds(tile: Tile, kind: str, n: int, k: int, format: str, tokens: int, device: Chip) -> float:
    """Time of the linear: waves of programs, bound by products or by L2, but no less than reading all from memory."""
    programs, span = _programs(tile, n, tokens), min(tile.span(k), k)
    weights, activations = _staged(tile, kind, format)
    rate = (device.fp8 or device.bf16 if kind == "fp8" else device.bf16) / device.processors
    sums = 8 * tile.block_n * tile.block_m if tile.splits > 1 else 0
    one = max(2 * tile.block_n * tile.block_m * span / rate, (span * (weights + activations) + sums) / _L2)
    rounds = -(-programs // device.processors)
    moved = n * k * weights / tile.block_n + tokens * k * activations / tile.block_m
    return max(rounds * one, moved / device.reachable_bandwidth) + _START
