"""The cpu executor's caches and their pool against lists of what each block has been given."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmc.runtime.cpu.pool import SlotPool
from llmc.runtime.cpu.slots import LEAST_POSITIONS, PARTS, SlotCaches, sequence_bytes
from llmc.runtime.engine_file.manifest import LayerCache
from llmc.runtime.errors import ResourceError
from llmc.runtime.scheduling.executor import Lease

LAYERS = (LayerCache(2, 3), LayerCache(1, 4, 5), LayerCache(3, 2, 16), LayerCache(1, 4, 5), LayerCache(1, 6, None, 4))
CONTEXT, SLOTS, LONGEST = 24, 3, 5
"""Positions of a sequence, sequences, tokens of a step: at most the smallest window."""


def feed(caches: SlotCaches, slots: slice, numbers: list[list[int]], start: int) -> None:
    """What a graph does: the numbers of each slot's sequence from `start` on, behind what its buffers hold."""
    tokens = len(numbers[0]) - start
    caches.make_room(slots, tokens)
    for name, array in caches.arrays.items():
        window = LAYERS[int(name.split(".")[0])].window
        lengths = caches.lengths["past_lengths" if window is None else f"window_lengths.{window}"]
        for slot, own in zip(range(slots.start, slots.stop), numbers, strict=True):
            array[slot, :, lengths[slot] : lengths[slot] + tokens] = np.array(own[-tokens:])[None, :, None]
    caches.advance(slots, tokens)


def check(caches: SlotCaches, block: int, own: list[int]) -> None:
    """A block's buffers end with the latest numbers of its sequence, at least a window of them."""
    slot = caches.slot(block)
    assert caches.lengths["past_lengths"][slot] == len(own) <= caches.filled(block)
    for layer, cache in enumerate(LAYERS):
        length = len(own)
        if cache.window is not None:
            length = int(caches.lengths[f"window_lengths.{cache.window}"][slot])
            assert min(len(own), cache.window) <= length <= min(len(own), 2 * cache.window)
        for part in PARTS:
            held = caches.arrays[f"{layer}.{part}"][slot, :, :length]
            assert (held == np.array(own[len(own) - length :])[None, :, None]).all()


class Sequences:
    """Runs sequences of numbers through a pool as scheduler and executor do."""

    def __init__(self, free_memory: int = 1 << 30) -> None:
        self.caches = SlotCaches(dict(enumerate(LAYERS)), CONTEXT)
        self.free_memory = free_memory
        self.pool = SlotPool(self.caches, SLOTS, lambda: self.free_memory)
        self.running: list[tuple[Lease, list[int]]] = []
        self.cached: list[int] = []

    def begin(self, prompt: Sequence[int], length: int = CONTEXT) -> bool:
        lease = self.pool.take(tuple(prompt), length)
        if lease is None:
            return False
        ((block,),) = lease.blocks
        assert lease.cached < len(prompt) and block not in [one.blocks[0][0] for one, _ in self.running]
        self.caches.cut(block, lease.cached)
        own = [*prompt[: lease.cached]]
        check(self.caches, block, own)
        self.running.append((lease, own))
        self.cached.append(lease.cached)
        for start in range(lease.cached, len(prompt), LONGEST):
            own += prompt[start : start + LONGEST]
            slot = self.caches.slot(block)
            feed(self.caches, slice(slot, slot + 1), [own], start)
        return True

    def decode(self, chosen: list[int], number: int) -> None:
        """One more number for some of the running sequences."""
        some = [self.running[index] for index in chosen if len(self.running[index][1]) < CONTEXT]
        if some:
            self.caches.move_to_front([lease.blocks[0][0] for lease, _ in some])
            some.sort(key=lambda one: self.caches.slot(one[0].blocks[0][0]))
            for _, own in some:
                own.append(number)
            for (_, own), slot in zip(some, range(len(some)), strict=True):
                assert self.caches.blocks[slot] in [lease.blocks[0][0] for lease, _ in some]
                feed(self.caches, slice(slot, slot + 1), [own], len(own) - 1)

    def end(self, index: int) -> list[int]:
        lease, own = self.running.pop(index)
        self.pool.give(own, lease, len(own))
        return own

    def check(self) -> None:
        for lease, own in self.running:
            check(self.caches, lease.blocks[0][0], own)
        assert self.pool.free == (SLOTS - len(self.running),)


TURNS = st.lists(
    st.one_of(
        st.tuples(st.just("begin"), st.integers(0, 99), st.lists(st.integers(1, 3), min_size=1, max_size=14)),
        st.tuples(st.just("decode"), st.integers(0, 3), st.lists(st.integers(0, SLOTS - 1), max_size=6)),
        st.tuples(st.just("end"), st.integers(0, SLOTS - 1), st.just([])),
    ),
    max_size=40,
)


@given(TURNS)
def test_blocks_hold_the_latest_positions_whatever_was_kept_cut_and_moved(turns: list[tuple[str, int, list[int]]]):
    sequences, spoken = Sequences(), [[1]]
    most = 0
    for what, number, more in turns:
        if what == "begin":
            earlier = spoken[number % len(spoken)]
            prompt = [*earlier[: len(earlier) - number % 4], *more][: CONTEXT - 1]
            room = len(sequences.running) < SLOTS
            assert sequences.begin(prompt) == room
        elif what == "decode":
            for index in more:
                some = {index, number} & {*range(len(sequences.running))}
                sequences.decode(sorted(some), number)
        elif number < len(sequences.running):
            spoken.append(sequences.end(number))
        most = max(most, len(sequences.running))
        sequences.check()
        assert len(sequences.caches.blocks) == most, "slots of the most sequences at once"


def test_slots_and_positions_are_committed_as_sequences_need_them():
    caches = SlotCaches(dict(enumerate(LAYERS)), 5000)
    assert caches.blocks == () and caches.arrays["0.key"].shape[0] == 0
    caches.commit(7, 10)
    assert caches.arrays["0.key"].shape == (1, 2, LEAST_POSITIONS, 3)
    assert caches.arrays["1.key"].shape == (1, 1, 10, 4) and caches.arrays["2.value"].shape == (1, 3, 32, 2)
    feed(caches, slice(0, 1), [[1, 2, 3]], 0)
    caches.commit(4, LEAST_POSITIONS + 1)
    assert caches.blocks == (7, 4) and caches.arrays["0.key"].shape == (2, 2, 2 * LEAST_POSITIONS, 3)
    check(caches, 7, [1, 2, 3])
    before = caches.arrays
    caches.commit(4, 100)
    assert caches.arrays is before, "nothing grew"
    caches.commit(4, 5000)
    assert caches.arrays["0.key"].shape[2] == 5000, "no more than the context"
    feed(caches, slice(1, 2), [[8, 9]], 0)
    caches.keep([4])
    assert caches.blocks == (4,)
    check(caches, 4, [8, 9])
    assert caches.bytes(3) == 4 * (2 * 3 * (2 * 3 + 4 + 3 * 2 + 4) + 3 * 6), "rows of latent attention count once"
    windowed = 2 * (30 * 2 * 3 + 10 * 4 + 30 * 3 * 2 + 10 * 4)
    assert caches.bytes(30) == 4 * (windowed + 30 * 6), "a window's buffer ends at twice it"
    assert sequence_bytes(LAYERS, 30) == caches.bytes(30)


def test_rows_of_latent_attention_are_one_array_under_two_names():
    caches = SlotCaches({0: LayerCache(1, 6, None, 4), 1: LayerCache(2, 6)}, 5000)
    for block, positions in ((7, 10), (4, 3000), (9, 10)):
        caches.commit(block, positions)
        assert caches.arrays["0.value"] is caches.arrays["0.key"]
        assert caches.arrays["1.value"] is not caches.arrays["1.key"]
    caches.keep([9, 4])
    assert caches.arrays["0.value"] is caches.arrays["0.key"] and caches.arrays["0.key"].shape[0] == 2
    caches.arrays["0.key"][:] = np.arange(2)[:, None, None, None]
    caches.advance(slice(0, 2), 3)
    caches.move_to_front([9])
    assert caches.blocks == (9, 4)
    assert caches.arrays["0.key"][:, 0, 2, 5].tolist() == [1.0, 0.0], "exchanged once, not twice"


def test_only_whose_buffer_is_full_is_compacted():
    caches = SlotCaches({0: LayerCache(1, 1, 4)}, 100)
    for block, length in enumerate((8, 3)):
        caches.commit(block, 100)
        caches.advance(slice(block, block + 1), length)
    caches.make_room(slice(0, 2), 1)
    assert caches.lengths["window_lengths.4"].tolist() == [4, 3]


def test_an_address_space_that_is_too_small_changes_nothing():
    caches = SlotCaches({0: LayerCache(1, 1 << 10)}, 1 << 40)
    caches.commit(0, 1)
    before = caches.arrays
    with pytest.raises(ResourceError, match="caches for 1 sequences of 1099511627776 tokens"):
        caches.commit(0, 1 << 40)
    assert caches.arrays is before and caches.blocks == (0,)


def test_the_next_turn_takes_the_slot_of_its_conversation():
    sequences = Sequences()
    for prompt in ([1, 2, 3], [1, 7, 8]):
        assert sequences.begin(prompt)
    turns = [sequences.end(0), sequences.end(0)]
    assert sequences.begin([*turns[1], 5, 5]) and sequences.begin([*turns[0], 6, 6])
    assert sequences.cached == [0, 0, 3, 3] and len(sequences.caches.blocks) == 2


def test_one_slot_is_used_again_for_another_conversation_instead_of_a_second():
    sequences = Sequences()
    for prompt, cached in (([1, 2, 3], 0), ([1, 7, 8], 1), ([4], 0), ([4], 0)):
        assert sequences.begin(prompt) and sequences.cached[-1] == cached
        sequences.end(0)
    assert sequences.caches.blocks == (0,)


@pytest.mark.parametrize(("dropped", "cached"), [(0, 22), (1, 21), (2, 20), (3, 0)])
def test_a_window_is_cut_back_as_far_as_its_buffer_reaches(dropped: int, cached: int):
    """After 23 tokens in fives, the buffer of ten positions for the window of 5 has the last eight; the last two of a
    prompt are computed."""
    sequences = Sequences()
    sequences.begin(list(range(23)))
    spoken = sequences.end(0)
    sequences.begin([*spoken[: 23 - dropped], 99])
    assert sequences.cached == [0, cached]
    sequences.check()


def test_a_request_waits_for_the_memory_that_others_will_fill():
    sequences = Sequences()
    of = sequences.caches.bytes
    sequences.free_memory = 2 * of(20) - 1
    assert sequences.begin([1, 2, 3], 20)
    sequences.free_memory -= of(3)
    waiting = (4, 5)
    assert not sequences.begin(waiting, 20)
    sequences.free_memory = 1 << 30
    assert not sequences.begin(waiting, 20), "asked again when a sequence has ended, not in every step"
    sequences.end(0)
    assert sequences.begin(waiting, 20)


def test_a_request_that_will_never_have_memory_fails_alone():
    sequences = Sequences()
    assert sequences.begin([1, 2, 3], 20)
    sequences.end(0)
    sequences.free_memory = sequences.caches.bytes(20) - sequences.caches.bytes(3) - 1
    with pytest.raises(ResourceError, match=r"cannot run a request of 20 tokens, .*\n  found: 0\.00 GB of memory free"):
        sequences.begin([1, 2, 3, 4, 5], 20)
    assert sequences.begin([1, 2, 3, 4, 5], 19) and sequences.cached == [0, 3], "what was kept is still there"


def test_kept_sequences_are_given_up_for_a_request_that_needs_their_memory():
    sequences = Sequences()
    for first in range(3):
        assert sequences.begin([first] * 20)
    for _ in range(3):
        sequences.end(0)
    assert len(sequences.caches.blocks) == 3
    sequences.free_memory = 0
    asked: list[int] = []

    def free() -> int:
        asked.append(len(sequences.caches.blocks))
        return 1000 if asked[-1] == 1 else 0

    sequences.pool._free_memory = free
    assert sequences.begin([*[2] * 20, 3, 3, 3]) and sequences.cached[-1] == 20
    assert asked == [3, 1] and len(sequences.caches.blocks) == 1
    sequences.check()


def test_a_failed_sequence_leaves_zeros():
    sequences = Sequences()
    sequences.begin([1, 2, 3])
    sequences.caches.arrays["0.key"][:] = np.nan
    lease, _ = sequences.running.pop()
    sequences.pool.give((), lease, 0)
    assert sequences.begin([4])
    assert np.isfinite(sequences.caches.arrays["0.key"]).all()
