"""The cpu executor's KV caches: per layer and slot one buffer, of all positions or of twice the layer's window.

New positions follow the old ones. If they do not fit into a window's buffer, the last `window` positions are copied to
its front. This costs one copy every `window` tokens, and attention reads one contiguous buffer.
"""

from __future__ import annotations

import math
import mmap
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from ..engine_file.manifest import LayerCache
from ..errors import ResourceError

PARTS = ("key", "value")


def buffer_shape(cache: LayerCache, context: int) -> tuple[int, int, int]:
    """[kv_heads, positions, head_dim]: the shape of one slot's keys, or values, in a layer."""
    return cache.kv_heads, context if cache.window is None else min(2 * cache.window, context), cache.head_dim


def lengths_name(window: int | None) -> str:
    """The graph's input ``i32 [B]`` with the positions in the buffers of a window (None: of layers without)."""
    return "past_lengths" if window is None else f"window_lengths.{window}"


@dataclass(frozen=True, slots=True)
class _Group:
    """The layers with one window."""

    window: int | None
    lengths: np.ndarray
    """``i32 [slots]``: positions in each slot's buffers."""
    buffers: list[np.ndarray]
    """``f32 [slots, K, C, D]`` each."""


class SlotCaches:
    """Buffers of all layers for a number of slots; `arrays` and `lengths` by the names of the graph's inputs."""

    def __init__(self, layers: Sequence[LayerCache], slots: int, context: int) -> None:
        """Allocate zeros, whose pages take memory only as sequences fill them.

        Raises:
            ResourceError: the address space is too small.
        """
        self.arrays: dict[str, np.ndarray] = {}
        try:
            groups = {one: _Group(one, np.zeros(slots, np.int32), []) for one in (None, *(c.window for c in layers))}
            for layer, cache in enumerate(layers):
                for part in PARTS:
                    array = _lazy_zeros((slots, *buffer_shape(cache, context)))
                    self.arrays[f"{layer}.{part}"] = array
                    groups[cache.window].buffers.append(array)
        except (MemoryError, OSError, OverflowError, ValueError) as error:
            raise ResourceError(
                f"cannot allocate caches for {slots} sequences of {context} tokens",
                found=str(error),
                fix="a smaller max_batch",
            ) from None
        self._groups = tuple(groups.values())
        self.lengths = {lengths_name(window): group.lengths for window, group in groups.items()}

    def clear(self) -> None:
        """Free everything."""
        self.arrays.clear()
        self._groups = ()

    def reset(self, slot: int) -> None:
        """Empty the slot for a new sequence."""
        for group in self._groups:
            group.lengths[slot] = 0

    def make_room(self, slots: slice, tokens: int) -> None:
        """Make room for `tokens` more positions in the buffers of these slots."""
        for group in self._groups:
            if group.window is not None:
                full = group.lengths[slots] + tokens > group.buffers[0].shape[2]
                for slot in np.flatnonzero(full) + slots.start:
                    _compact(group, group.window, slot)

    def advance(self, slots: slice, tokens: int) -> None:
        """Count `tokens` more positions in these slots."""
        for group in self._groups:
            group.lengths[slots] += tokens

    def move(self, source: int, target: int) -> None:
        """Copy a slot's contents over another's."""
        for group in self._groups:
            length = group.lengths[target] = group.lengths[source]
            for buffer in group.buffers:
                buffer[target, :, :length] = buffer[source, :, :length]

    def swap(self, one: int, other: int) -> None:
        """Exchange the contents of two slots."""
        pair, reverse = [one, other], [other, one]
        for group in self._groups:
            length = group.lengths[pair].max()
            for buffer in group.buffers:
                buffer[pair, :, :length] = buffer[reverse, :, :length]
            group.lengths[pair] = group.lengths[reverse]


def _compact(group: _Group, window: int, slot: int) -> None:
    length = group.lengths[slot]
    kept = group.lengths[slot] = min(length, window)
    for buffer in group.buffers:
        buffer[slot, :, :kept] = buffer[slot, :, length - kept : length].copy()


def _lazy_zeros(shape: tuple[int, ...]) -> np.ndarray:
    """float32 zeros in small pages, even if malloc uses huge pages, which would take memory that is never filled."""
    pages = mmap.mmap(-1, 4 * math.prod(shape))
    if hasattr(mmap, "MADV_NOHUGEPAGE"):
        pages.madvise(mmap.MADV_NOHUGEPAGE)
    return np.frombuffer(pages, np.float32).reshape(shape)
