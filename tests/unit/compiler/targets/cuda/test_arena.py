"""Buffers that live at the same time never share a byte, and the arena is no larger than it must be in simple cases."""

from __future__ import annotations

import itertools

from hypothesis import given
from hypothesis import strategies as st

from llmc.compiler.targets.cuda.arena import Lifetime, place_buffers
from llmc.runtime.plan.budget import ALIGNMENT

LIVES = st.dictionaries(
    st.text("abcdef", min_size=1, max_size=3),
    st.tuples(st.integers(0, 5000), st.integers(0, 8), st.integers(0, 8)).map(
        lambda t: Lifetime(t[0], min(t[1:]), max(t[1:]))
    ),
    max_size=12,
)


@given(LIVES)
def test_no_two_live_buffers_overlap(lives: dict[str, Lifetime]):
    offsets, arena = place_buffers(lives)
    assert set(offsets) == set(lives)
    for a, b in itertools.combinations(lives, 2):
        together = lives[a].first <= lives[b].last and lives[b].first <= lives[a].last
        apart = offsets[a] + lives[a].bytes <= offsets[b] or offsets[b] + lives[b].bytes <= offsets[a]
        assert not together or apart
    assert all(offset % ALIGNMENT == 0 and offset + lives[n].bytes <= arena for n, offset in offsets.items())
    aligned = [-(-life.bytes // ALIGNMENT) * ALIGNMENT for life in lives.values()]
    assert arena <= sum(aligned)
    assert place_buffers(dict(reversed(lives.items()))) == (offsets, arena), "the order of names decides nothing"


def test_a_chain_needs_two_buffers():
    lives = {f"x{i}": Lifetime(1024, i, i + 1) for i in range(20)}
    assert place_buffers(lives)[1] == 2048


def test_a_buffer_fills_the_gap_that_one_before_it_left():
    lives = {"a": Lifetime(4096, 0, 1), "b": Lifetime(1024, 0, 5), "c": Lifetime(2048, 2, 3), "d": Lifetime(2048, 2, 3)}
    assert place_buffers(lives)[1] == 5120
