"""Both transports give the same bits: those of a sum in the order of shards, and of arrays laid side by side."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import cache, reduce

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support.parallel.crew import Crew

from llmc.runtime.errors import EngineError
from llmc.runtime.parallel.data.mesh import Mesh

_CREWS: list[Crew] = []


@cache
def crew(transport: str, shards: int) -> Crew:
    made = Crew(shards, [0] * shards if transport == "shared" else list(range(shards)))
    _CREWS.append(made)
    return made


@pytest.fixture(scope="module", autouse=True)
def leave() -> Iterator[None]:
    yield
    for one in _CREWS:
        one.close()
    _CREWS.clear()
    crew.cache_clear()


def arrays(seed: int, shape: Sequence[int], shards: int, dtype: str) -> list[np.ndarray]:
    """One for each shard: floats of all sizes, so that another order of adding gives other bits; integers that wrap."""
    rng = np.random.default_rng(seed)
    if dtype == "i4":
        return [rng.integers(-(2**31), 2**31, shape, np.int32) for _ in range(shards)]
    return [(rng.standard_normal(shape) * 10.0 ** rng.integers(-6, 7, shape)).astype(np.float32) for _ in range(shards)]


SHARDS = st.integers(2, 4)
SHAPES = st.lists(st.integers(0, 9), min_size=1, max_size=3)
TRANSPORTS = ("shared", "gloo")


@settings(max_examples=40)
@given(
    st.integers(0, 99),
    SHARDS,
    st.one_of(SHAPES, st.just([3, 50_000]), st.just([1_300_001])),
    st.sampled_from(["f4", "i4"]),
    st.booleans(),
)
def test_a_sum_has_the_bits_of_adding_in_the_order_of_shards(
    seed: int, shards: int, shape: list[int], dtype: str, in_place: bool
):
    xs = arrays(seed, shape, shards, dtype)
    wanted = reduce(np.add, xs)

    def one(mesh: Mesh) -> np.ndarray:
        x = xs[mesh.rank].copy()
        out = x if in_place else np.empty_like(x)
        mesh.all_reduce(x, out)
        assert in_place or (x == xs[mesh.rank]).all()
        return out

    for transport in TRANSPORTS:
        for out in crew(transport, shards).all(one):
            same = out.tobytes() == wanted.tobytes()  # pytest would explain how megabytes differ
            assert same, transport


@settings(max_examples=20)
@given(st.integers(0, 99), st.data(), SHARDS, st.sampled_from(["f4", "i4"]), st.sampled_from([1, 2, 40_000]))
def test_parts_of_any_size_along_any_axis(seed: int, data: st.DataObject, shards: int, dtype: str, times: int):
    shape = data.draw(SHAPES)
    axis = data.draw(st.integers(0, len(shape) - 1))
    sizes = data.draw(st.lists(st.integers(0, 5), min_size=shards, max_size=shards))
    shape[axis] = sum(sizes)
    if axis + 1 < len(shape):
        shape[-1] *= times
    xs = arrays(seed, shape, shards, dtype)
    ends = np.cumsum([0, *sizes])
    total = reduce(np.add, xs)

    def one(mesh: Mesh) -> tuple[np.ndarray, np.ndarray]:
        part = [*shape]
        part[axis] = sizes[mesh.rank]
        out = np.empty(part, xs[0].dtype)
        mesh.reduce_scatter(xs[mesh.rank], axis, sizes, out)
        whole = np.empty(shape, out.dtype)
        mesh.all_gather(out, axis, sizes, whole)
        return out, whole

    for transport in TRANSPORTS:
        for rank, (part, whole) in enumerate(crew(transport, shards).all(one)):
            assert (part == np.take(total, range(ends[rank], ends[rank + 1]), axis)).all()
            same = whole.tobytes() == total.tobytes()
            assert same, transport


@pytest.mark.parametrize("transport", TRANSPORTS)
def test_messages_come_in_order_and_a_sender_goes_on(transport: str):
    sent = [np.arange(size, dtype=np.float32) + size for size in (0, 1, 5000, 700_000, 3)]

    def one(mesh: Mesh) -> list[np.ndarray]:
        if mesh.rank == 0:
            for x in sent:  # returns before anything is received, as rank 1 waits for the barrier first
                copy = x.copy()
                mesh.send(copy, 1)
                copy[...] = -1
        mesh.barrier()
        if mesh.rank == 1:
            found = [np.empty_like(x) for x in sent]
            for out in found:
                mesh.recv(out, 0)
            mesh.send(np.ones(3, np.int64), 0)
            return found
        if mesh.rank == 0:
            out = np.empty(3, np.int64)
            mesh.recv(out, 1)
            return [out]
        return []

    answer, found, _ = crew(transport, 3).all(one)
    assert all((x == y).all() for x, y in zip(sent, found, strict=True))
    assert answer[0].tolist() == [1, 1, 1]


@pytest.mark.parametrize("transport", TRANSPORTS)
def test_a_message_larger_than_all_that_is_buffered(transport: str):
    x = np.random.default_rng(0).integers(0, 255, 40 << 20, np.uint8)

    def one(mesh: Mesh) -> bool:
        if mesh.rank == 0:
            mesh.send(x, 1)
            return True
        out = np.empty_like(x)
        mesh.recv(out, 0)
        return bool((out == x).all())

    assert crew(transport, 2).all(one) == [True, True]


@pytest.mark.parametrize("transport", TRANSPORTS)
@pytest.mark.parametrize("kind", ["sum", "message", "parts"])
def test_ranks_that_disagree_about_sizes_are_told(transport: str, kind: str):
    """gloo itself would end the process that has less room than comes."""
    made = Crew(2, [0, 0] if transport == "shared" else [0, 1])

    def one(mesh: Mesh) -> None:
        size = 50_000 if mesh.rank == 0 else 40_000
        x = np.zeros(size, np.float32)
        try:
            if kind == "sum":
                mesh.all_reduce(x, x)
            elif kind == "parts":
                sizes = [30_000, 20_000] if mesh.rank == 0 else [20_000, 30_000]
                mesh.all_gather(np.zeros(sizes[mesh.rank], np.float32), 0, sizes, np.zeros(50_000, np.float32))
            elif mesh.rank == 0:
                mesh.send(x, 1)
            else:
                mesh.recv(x, 0)
        finally:
            made.over = True

    found = made.some(one, one)
    made.close()
    assert isinstance(found[1], EngineError), found
    assert str(found[1]).startswith("cannot exchange arrays between ranks\n  found: a ")


def test_two_stages_of_two_shards_on_two_hosts():
    """Each TP group shares memory; messages between stages cross hosts."""
    made = Crew(2, [0, 0, 1, 1])

    def one(mesh: Mesh) -> float:
        x = np.full(4, mesh.rank + 1, np.float32)
        mesh.all_reduce(x, x)
        mesh.barrier()
        peer = (mesh.rank + 2) % 4
        mesh.send(x, peer)
        mesh.recv(x, peer)
        return float(x[0])

    assert made.all(one) == [7, 7, 3, 3]
    made.close()


def test_a_job_that_ends_is_left():
    """Rank 1 never comes."""
    for hosts in ([0, 0], [0, 1]):
        made = Crew(2, hosts)
        x = np.zeros(4, np.float32)

        def wait(mesh: Mesh, x: np.ndarray = x) -> None:
            mesh.all_reduce(x, x)

        def end(_: Mesh, made: Crew = made) -> None:
            made.over = True

        assert "the test is over" in str(made.some(wait, end)[0])
        made.close()
