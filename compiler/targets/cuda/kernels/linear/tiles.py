"""Tile sizes of the linears: a heuristic for every shape, which a measured table overrides."""

from __future__ import annotations

from dataclasses import replace

from ......runtime.chips import SHARED, chip
from ...call import next_power
from .dequantize import PER_WORD, chunk
from .many import tile_for_many
from .shape import NATIVE as NATIVE
from .shape import ROUTES as ROUTES
from .shape import TRITON as TRITON
from .shape import Tile as Tile

COUNTERS = 16384
"""Counters for split-K: one per tile of outputs, 0 between launches."""
_PROGRAMS_WANTED = 4
"""Programs on each multiprocessor that keep enough bytes in flight from memory."""
_LEAST_SPAN = 512
"""Fewest columns of a part of K."""
KINDS = ("small", "large", "fp8")
"""Kernels of linears: few tokens, many tokens, and many in FP8 on both sides."""
_RANGES = {"block_n": (32, 256), "block_k": (16, 512), "block_m": (16, 256), "warps": (2, 16)}
"""Smallest and largest power of two of a tile's fields."""
_MOST_SPLITS = 64
_MOST_STAGES = 8


def default_tile(kind: str, n: int, k: int, format: str, max_tokens: int, sm: int) -> Tile:
    """The heuristic tile of a linear [n, k]; kind is one of `KINDS`."""
    if max_tokens > 64:
        return tile_for_many(kind, n, k, format, max_tokens, sm)
    if kind == "fp8":
        stages = 4 if SHARED[sm] > 100 << 10 else 3
        tile = Tile(64, 128, max(16, next_power(max_tokens)), 1, 4, stages)
        return _split(tile, n, k, format, max_tokens, sm)
    block_m = min(64, max(16, next_power(max_tokens)))
    # Two warps multiply by mma.sync, which waits for nothing, and each has 32 rows: activations are read half as often.
    # Four would use wgmma, whose waits and fences are worth it from 64 tokens on.
    roomy, warps = SHARED[sm] > 100 << 10, 2 if block_m <= 32 else 4
    if format == "dense":
        return _split(Tile(64, 64, block_m, 1, warps, 4 if roomy else 3), n, k, format, max_tokens, sm)
    if not roomy and block_m > 16:  # without the second stage some formats spill
        return _split(Tile(64, chunk(format), block_m, 1, warps, 2), n, k, format, max_tokens, sm)
    wide = PER_WORD[format] == 8 and roomy and block_m <= 32 and k % 256 == 0
    return _split(Tile(64, 256 if wide else 128, block_m, 1, warps, 3), n, k, format, max_tokens, sm)


def wrong_tile(kind: str, n: int, k: int, format: str, max_tokens: int, tile: Tile, sm: int) -> str:
    """Why a linear [n, k] cannot have this tile on the chip in steps of at most max_tokens, or "".

    The check of shared memory is a lower bound: stages - 1 buffers of each operand that goes through it. Only the
    compiler knows the exact number.
    """
    for name, (least, most) in _RANGES.items():
        size = getattr(tile, name)
        if next_power(size) != size or not least <= size <= most:
            return f"{name} {size} is not a power of two from {least} to {most}"
    if not 1 <= tile.stages <= _MOST_STAGES:
        return f"stages {tile.stages} is not from 1 to {_MOST_STAGES}"
    if not 1 <= tile.splits <= _MOST_SPLITS:
        return f"splits {tile.splits} is not from 1 to {_MOST_SPLITS}"
    if kind == "fp8" and not (tile.block_n <= 128 and 32 <= tile.block_k <= 128):
        return "a block of FP8 has at most 128 rows, and 32 to 128 columns"
    if kind != "fp8" and format != "dense" and tile.block_k % chunk(format):
        return f"block_k {tile.block_k} is not a multiple of {chunk(format)}, the chunk of {format}"
    try:
        tile.span(k)
    except ValueError as error:
        return str(error)
    if tile.splits > 1 and -(-n // tile.block_n) * -(-max_tokens // tile.block_m) > COUNTERS:
        return f"more than {COUNTERS} blocks of outputs, the most with parts of K"
    act, weight = (1.0, 1.0) if kind == "fp8" else (2.0, 4 / PER_WORD[format] if format != "dense" else 2.0)
    staged = tile.block_k * (tile.block_n * weight + tile.block_m * act)
    if format != "dense" and kind != "fp8" and tile.stages == 1:
        staged = chunk(format) * tile.block_m * act  # decoded weights stay in registers
    shared = int(max(1, tile.stages - 1) * staged)
    if shared > SHARED[sm]:
        return f"{shared} bytes of shared memory, of at most {SHARED[sm]}"
    return ""


def _split(tile: Tile, n: int, k: int, format: str, max_tokens: int, sm: int) -> Tile:
    """The tile with the number of parts of K, of at least `_LEAST_SPAN` columns, that a rough model finds fastest.

    The unit is the time of reading the weights with a full chip. A chip that is not full, or not full in the last
    round, takes longer; writing and reading the sums is added, at half the cost per byte since they stay in L2.
    """
    tiles, processors = -(-n // tile.block_n), chip(sm).processors
    blocks = -(-k // tile.block_k)
    weight_bytes = k * 4 / PER_WORD[format] if format in PER_WORD else k * 2
    best, best_time = 1, float("inf")
    for splits in range(1, 17):
        span = -(-blocks // splits)
        if -(-blocks // span) != splits or (splits > 1 and span * tile.block_k < _LEAST_SPAN):
            continue
        programs = tiles * splits
        even = programs / (-(-programs // processors) * processors)
        sums = 4 * splits * max_tokens / weight_bytes if splits > 1 else 0.0
        time = 1 / (even * min(1.0, programs / (_PROGRAMS_WANTED * processors))) + sums
        if time < 0.95 * best_time:
            best, best_time = splits, time
    return replace(tile, splits=best)
