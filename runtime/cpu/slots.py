"""The cpu executor's KV caches: per layer and slot one buffer, of all positions or of twice the layer's window.

New positions follow the old ones. If they do not fit into a window's buffer, the last `window` positions are copied to
its front. This costs one copy every `window` tokens, and attention reads one contiguous buffer.

Slots and positions are committed as sequences need them. A slot belongs to a block, the scheduler's name for contents:
these change places, because sequences that decode together have the slots [0, n).
"""

from __future__ import annotations

import math
import mmap
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from ..engine_file.manifest import LayerCache
from ..errors import ResourceError

PARTS = ("key", "value")
LEAST_POSITIONS = 256
"""Positions of the first buffers; each larger size is twice the one before."""


def buffer_shape(cache: LayerCache, positions: int) -> tuple[int, int, int]:
    """[kv_heads, positions, head_dim]: the shape of one slot's keys, or values, in a layer."""
    return cache.kv_heads, positions if cache.window is None else min(2 * cache.window, positions), cache.head_dim


def sequence_bytes(caches: Iterable[LayerCache], positions: int) -> int:
    """Memory of a sequence's keys and values in these layers."""
    return 4 * sum(len(cache.parts) * math.prod(buffer_shape(cache, positions)) for cache in caches)


def lengths_name(window: int | None) -> str:
    """The graph's input ``i32 [B]`` with the positions in the buffers of a window (None: of layers without)."""
    return "past_lengths" if window is None else f"window_lengths.{window}"


@dataclass(frozen=True, slots=True)
class _Group:
    """The layers with one window."""

    window: int | None
    lengths: str
    arrays: tuple[str, ...]


class SlotCaches:
    """Buffers of all layers for the committed slots.

    `arrays` ``f32 [slots, K, C, D]`` and `lengths` ``i32 [slots]``, the positions in each slot's buffers, are named as
    the graph's inputs; rows of latent attention have both names. Both are new objects when slots or positions are
    added or given up.
    """

    def __init__(self, layers: Mapping[int, LayerCache], context: int, windows: Collection[int] = ()) -> None:
        """`windows` are those of the whole model: a rank without a layer of one counts what the others keep."""
        self.arrays: dict[str, np.ndarray] = {}
        groups = dict.fromkeys((None, *windows, *(cache.window for cache in layers.values())))
        self.lengths = {lengths_name(one): np.zeros(0, np.int32) for one in groups}
        self._layers = {f"{layer}.{part}": cache for layer, cache in layers.items() for part in cache.parts}
        self._second = {f"{layer}.value": f"{layer}.key" for layer, cache in layers.items() if cache.rank is not None}
        """The second name of an array, to the first."""
        self._groups = [
            _Group(one, lengths_name(one), tuple(name for name, cache in self._layers.items() if cache.window == one))
            for one in groups
        ]
        self._context, self._positions = context, 0
        self._blocks: list[int] = []
        self._resize([], 0)

    @property
    def blocks(self) -> tuple[int, ...]:
        """The blocks that have slots, in the slots' order."""
        return tuple(self._blocks)

    def slot(self, block: int) -> int:
        return self._blocks.index(block)

    def bytes(self, positions: int) -> int:
        """Memory of the keys and values of a sequence."""
        return 4 * sum(math.prod(buffer_shape(cache, positions)) for cache in self._layers.values())

    def filled(self, block: int) -> int:
        """Positions of a block's slot that take memory."""
        return int(self._filled[self.slot(block)]) if block in self._blocks else 0

    def commit(self, block: int, positions: int) -> None:
        """Have a slot for a block, and buffers of at least `positions` positions.

        Their pages take memory only as they are filled.

        Raises:
            ResourceError: the address space is too small; nothing has changed.
        """
        if positions <= self._positions and block in self._blocks:
            return  # as in every step but the first ones
        size = max(self._positions, min(LEAST_POSITIONS, self._context))
        while size < min(positions, self._context):
            size = min(2 * size, self._context)
        self._resize([*self._blocks, *({block} - {*self._blocks})], size)

    def keep(self, blocks: Collection[int]) -> None:
        """Give up the slots of all other blocks."""
        kept = [block for block in self._blocks if block in blocks]
        if len(kept) < len(self._blocks):
            self._resize(kept, self._positions)

    def clear(self) -> None:
        """Free everything."""
        self.keep(())

    def holds(self, block: int, length: int) -> bool:
        """Whether a block still has what the token after its first `length` reads."""
        slot = self.slot(block)
        past = self.lengths[lengths_name(None)][slot]
        firsts = [(group.window, past - self.lengths[group.lengths][slot]) for group in self._groups]
        return bool(length <= past and all(first <= max(0, length - (window or 0)) for window, first in firsts))

    def cut(self, block: int, length: int) -> None:
        """Keep the first `length` positions of a block, which it `holds`; 0 empties it for a new sequence."""
        slot = self.slot(block)
        surplus = self.lengths[lengths_name(None)][slot] - length
        for lengths in self.lengths.values():
            lengths[slot] = lengths[slot] - surplus if length else 0

    def make_room(self, slots: slice, tokens: int) -> None:
        """Make room for `tokens` more positions in the buffers of these slots."""
        for group in self._groups:
            if group.window is not None:
                lengths, buffers = self.lengths[group.lengths], [self.arrays[name] for name in group.arrays]
                full = lengths[slots] + tokens > min(2 * group.window, self._positions)
                for slot in np.flatnonzero(full) + slots.start:
                    _compact(lengths, buffers, group.window, slot)

    def advance(self, slots: slice, tokens: int) -> None:
        """Count `tokens` more positions in these slots."""
        for lengths in self.lengths.values():
            lengths[slots] += tokens
        self._filled[slots] = np.maximum(self._filled[slots], self.lengths[lengths_name(None)][slots])

    def together(self, blocks: Collection[int]) -> slice:
        """The slots of these blocks, once they are adjacent: if they are not, contents move to the first slots."""
        slots = sorted(map(self.slot, blocks))
        if slots[-1] - slots[0] == len(slots) - 1:
            return slice(slots[0], slots[-1] + 1)
        self.move_to_front(blocks)
        return slice(0, len(slots))

    def move_to_front(self, blocks: Collection[int]) -> None:
        """Exchange contents until these n blocks have the slots [0, n)."""
        count = len(blocks)
        if {*self._blocks[:count]} == {*blocks}:
            return
        outside = [slot for slot in range(count) if self._blocks[slot] not in blocks]
        above = [slot for slot in range(count, len(self._blocks)) if self._blocks[slot] in blocks]
        for low, high in zip(outside, above, strict=True):
            self._swap(low, high)

    def _swap(self, one: int, other: int) -> None:
        pair, reverse = [one, other], [other, one]
        for group in self._groups:
            lengths = self.lengths[group.lengths]
            length = lengths[pair].max()
            for name in group.arrays:
                self.arrays[name][pair, :, :length] = self.arrays[name][reverse, :, :length]
            lengths[pair] = lengths[reverse]
        self._filled[pair] = self._filled[pair].max()
        self._blocks[one], self._blocks[other] = self._blocks[other], self._blocks[one]

    def _resize(self, blocks: list[int], positions: int) -> None:
        """Have slots for these blocks in this order, with the contents that they had."""
        count = len(blocks)
        try:
            arrays = {
                name: _lazy_zeros((count, *buffer_shape(cache, positions))) for name, cache in self._layers.items()
            }
        except (MemoryError, OSError, OverflowError, ValueError) as error:
            raise ResourceError(
                f"cannot allocate caches for {count} sequences of {positions} tokens",
                found=str(error),
                fix="fewer requests at once, or a smaller max_tokens",
            ) from None
        sources = [self.slot(block) for block in blocks if block in self._blocks]
        kept = slice(0, len(sources))
        lengths = {group.lengths: np.zeros(count, np.int32) for group in self._groups}
        for second in self._second:
            self.arrays.pop(second, None)
        for group in self._groups:
            lengths[group.lengths][kept] = self.lengths[group.lengths][sources]
            for name in group.arrays:
                old = self.arrays.pop(name, arrays[name])  # freed before the next one is copied
                for slot, source in enumerate(sources):
                    length = lengths[group.lengths][slot]
                    arrays[name][slot, :, :length] = old[source, :, :length]
        self._filled = lengths[lengths_name(None)].astype(np.int64)
        arrays |= {second: arrays[first] for second, first in self._second.items()}
        self.arrays, self.lengths, self._blocks, self._positions = arrays, lengths, blocks, positions


def _compact(lengths: np.ndarray, buffers: Sequence[np.ndarray], window: int, slot: int) -> None:
    length = lengths[slot]
    kept = lengths[slot] = min(length, window)
    for buffer in buffers:
        buffer[slot, :, :kept] = buffer[slot, :, length - kept : length].copy()


def _lazy_zeros(shape: tuple[int, ...]) -> np.ndarray:
    """float32 zeros in small pages, even if malloc uses huge pages, which would take memory that is never filled."""
    pages = mmap.mmap(-1, max(4 * math.prod(shape), 1))
    if hasattr(mmap, "MADV_NOHUGEPAGE"):
        pages.madvise(mmap.MADV_NOHUGEPAGE)
    return np.frombuffer(pages, np.float32, math.prod(shape)).reshape(shape)
