"""Shared blocks: what a block is believed to hold is what was written into it, whatever was taken back in between."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from llmc.runtime.scheduling.blocks import BlockPool

A, B, C = (1, 1), (2, 2), (3, 3)


def test_a_block_used_again_gives_its_followers_no_other_beginning():
    pool = BlockPool(4, 2, share=True)
    first, twin = pool.take(A, 2), pool.take((*A, *B), 4)
    assert first is not None and twin is not None
    pool.remember(A, first.blocks)
    pool.remember((*A, *B), twin.blocks)  # its second block follows the first request's block
    pool.give(first.blocks)
    other = pool.take(C, 4)
    assert other is not None and first.blocks[0] in other.blocks, "the beginning was taken for something else"
    pool.remember(C, (first.blocks[0], *other.blocks))
    pool.give(other.blocks)
    asked = pool.take((*C, *B, 9), 5)
    assert asked is None or asked.cached <= 2


@settings(max_examples=200, deadline=None)
@given(st.lists(st.tuples(st.lists(st.integers(0, 1), min_size=1, max_size=9), st.integers(0, 4)), max_size=30))
def test_cached_positions_hold_the_prompt(requests: list[tuple[list[int], int]]):
    pool = BlockPool(6, 2, share=True)
    written: dict[int, tuple[int, ...]] = {}
    live: list[tuple[int, ...]] = []
    for prompt, ends in requests:
        for _ in range(min(ends, len(live))):
            pool.give(live.pop(0))
        lease = pool.take(prompt, len(prompt) + 1)
        if lease is None:
            continue
        assert lease.cached < len(prompt)
        for index in range(lease.cached // 2):
            assert written[lease.blocks[index]] == tuple(prompt[: 2 * index + 2]), "another beginning"
        for index, block in enumerate(lease.blocks[lease.cached // 2 :], lease.cached // 2):
            assert all(block not in other for other in live), "written while another reads it"
            written[block] = tuple(prompt[: 2 * index + 2])
        pool.remember(prompt, lease.blocks)
        live.append(lease.blocks)
    for blocks in live:
        pool.give(blocks)
    assert pool.available == 6
