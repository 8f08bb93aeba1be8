"""Shared blocks: what a block is believed to hold is what was written into it, whatever was taken back in between."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from llmc.runtime.scheduling.blocks import SharedPool
from llmc.runtime.scheduling.executor import CacheKind, Lease

A, B, C = (1, 1), (2, 2), (3, 3)


def test_a_block_used_again_gives_its_followers_no_other_beginning():
    pool = SharedPool(CacheKind(4), 2)
    first, twin = pool.take(A, 2), pool.take((*A, *B), 4)
    assert first is not None and twin is not None
    pool.remember(A, first)
    pool.remember((*A, *B), twin)  # its second block follows the first request's block
    pool.give(A, first, len(A))
    other = pool.take(C, 4)
    assert other is not None and first.blocks[0][0] in other.blocks[0], "the beginning was taken for something else"
    pool.remember(C, other)
    pool.give(C, other, len(C))
    asked = pool.take((*C, *B, 9), 5)
    assert asked is None or asked.cached <= 2


def test_an_answers_blocks_are_remembered_when_they_are_given_back():
    pool = SharedPool(CacheKind(6), 2)
    lease = pool.take(A, 6)
    assert lease is not None
    pool.remember(A, lease)
    pool.give((*A, *B, 3), lease, len(A) + len(B) + 1)
    again = pool.take((*A, *B, 3, 4), 6)
    assert again is not None and again.cached == 4 and again.blocks[0][:2] == lease.blocks[0][:2]


@settings(max_examples=200, deadline=None)
@given(st.lists(st.tuples(st.lists(st.integers(0, 1), min_size=1, max_size=9), st.integers(0, 4)), max_size=30))
def test_cached_positions_hold_the_prompt(requests: list[tuple[list[int], int]]):
    """The last token of a request is its answer, which is known when its blocks are given back."""
    pool = SharedPool(CacheKind(6), 2)
    written: dict[int, tuple[int, ...]] = {}
    live: list[tuple[list[int], Lease]] = []
    for tokens, ends in requests:
        for _ in range(min(ends, len(live))):
            given, freed = live.pop(0)
            pool.give(given, freed, len(given))
        prompt = tokens[: max(1, len(tokens) - 1)]
        lease = pool.take(prompt, len(tokens))
        if lease is None:
            continue
        assert lease.cached < len(prompt)
        (blocks,) = lease.blocks
        for index in range(lease.cached // 2):
            assert written[blocks[index]] == tuple(prompt[: 2 * index + 2]), "another beginning"
        for index, block in enumerate(blocks[lease.cached // 2 :], lease.cached // 2):
            assert all(block not in other.blocks[0] for _, other in live), "written while another reads it"
            written[block] = tuple(tokens[: 2 * index + 2])
        pool.remember(prompt, lease)
        live.append((tokens, lease))
    for given, freed in live:
        pool.give(given, freed, len(given))
    assert pool.free == (6,)
