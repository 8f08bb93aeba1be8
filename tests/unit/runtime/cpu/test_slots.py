"""The cpu executor's caches against lists of what each slot has been given."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmc.runtime.cpu.slots import PARTS, SlotCaches
from llmc.runtime.engine_file.manifest import LayerCache
from llmc.runtime.errors import ResourceError

LAYERS = (LayerCache(2, 3), LayerCache(1, 4, 5), LayerCache(3, 2, 16), LayerCache(1, 4, 5))
CONTEXT, SLOTS = 24, 3
WINDOWS = (None, 5, 16)


def write(caches: SlotCaches, slots: slice, tokens: int, numbers: list[list[float]]) -> None:
    """What a graph does: each slot's new positions behind those its buffers hold."""
    for layer, cache in enumerate(LAYERS):
        name = "past_lengths" if cache.window is None else f"window_lengths.{cache.window}"
        for slot in range(slots.start, slots.stop):
            start = caches.lengths[name][slot]
            for part in PARTS:
                caches.arrays[f"{layer}.{part}"][slot, :, start : start + tokens] = np.array(numbers[slot][-tokens:])[
                    None, :, None
                ]


STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("reset"), st.integers(0, SLOTS - 1), st.just(0)),
        st.tuples(st.just("prompt"), st.integers(0, SLOTS - 1), st.integers(1, 5)),
        st.tuples(st.just("decode"), st.integers(1, SLOTS), st.integers(1, 9)),
        st.tuples(st.just("move"), st.integers(0, SLOTS - 1), st.integers(0, SLOTS - 1)),
        st.tuples(st.just("swap"), st.integers(0, SLOTS - 1), st.integers(0, SLOTS - 1)),
    ),
    max_size=40,
)


@given(STEPS)
def test_buffers_end_with_the_latest_positions(steps: list[tuple[str, int, int]]):
    caches = SlotCaches(LAYERS, SLOTS, CONTEXT)
    assert caches.arrays["1.key"].shape == (SLOTS, 1, 10, 4) and caches.arrays["2.value"].shape == (SLOTS, 3, 24, 2)
    history: list[list[float]] = [[] for _ in range(SLOTS)]
    number = 0.0

    def run(slots: slice, tokens: int) -> None:
        nonlocal number
        if any(len(history[slot]) + tokens > CONTEXT for slot in range(slots.start, slots.stop)):
            return
        for slot in range(slots.start, slots.stop):
            history[slot] += [number + index for index in range(tokens)]
            number += tokens
        caches.make_room(slots, tokens)
        write(caches, slots, tokens, history)
        caches.advance(slots, tokens)

    for what, one, other in steps:
        if what == "reset":
            caches.reset(one)
            history[one] = []
        elif what == "prompt":
            run(slice(one, one + 1), other)
        elif what == "decode":
            for _ in range(other):
                run(slice(0, one), 1)
        elif what == "move":
            caches.move(one, other)
            history[other] = list(history[one])
        else:
            caches.swap(one, other)
            history[one], history[other] = history[other], history[one]
        check(caches, history)


def check(caches: SlotCaches, history: list[list[float]]) -> None:
    assert caches.lengths["past_lengths"].tolist() == [len(own) for own in history]
    for layer, cache in enumerate(LAYERS):
        for slot, own in enumerate(history):
            length = len(own)
            if cache.window is not None:
                length = int(caches.lengths[f"window_lengths.{cache.window}"][slot])
                assert min(len(own), cache.window) <= length <= min(len(own), 2 * cache.window)
            for part in PARTS:
                held = caches.arrays[f"{layer}.{part}"][slot, :, :length]
                assert (held == np.array(own[len(own) - length :])[None, :, None]).all()


def test_only_whose_buffer_is_full_is_compacted():
    caches = SlotCaches((LayerCache(1, 1, 4),), 2, 100)
    caches.advance(slice(0, 1), 8)
    caches.advance(slice(1, 2), 3)
    caches.make_room(slice(0, 2), 1)
    assert caches.lengths["window_lengths.4"].tolist() == [4, 3]


def test_too_many_slots_are_refused():
    with pytest.raises(ResourceError, match=r"caches for 1099511627776 sequences of 24 tokens"):
        SlotCaches(LAYERS, 1 << 40, CONTEXT)
