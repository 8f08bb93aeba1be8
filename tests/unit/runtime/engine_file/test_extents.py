"""The bytes that a weight expression reads are those that its extents name, and the pages of a rank are few more."""

from __future__ import annotations

import mmap
from itertools import pairwise

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from llmc.runtime.engine_file.bind import (
    Concat,
    Expr,
    Reshape,
    Slice,
    Stored,
    ToF32,
    evaluate_weight,
    from_json,
    to_json,
)
from llmc.runtime.engine_file.extents import Extents, extents, page_runs
from llmc.runtime.files.safetensors import TensorInfo

AT = 256
FILE = np.random.default_rng(0).integers(0, 256, 4096, dtype=np.uint8)


def covered(parts: list[Extents], size: int) -> np.ndarray:
    """True for the bytes of a file that the parts name."""
    found = np.zeros(size, bool)
    for part in parts:
        for index in range(part.count):
            found[part.offset + index * part.step : part.offset + index * part.step + part.nbytes] = True
    return found


@st.composite
def expressions(draw: st.DrawFn) -> tuple[Stored, Expr]:
    shape = draw(st.lists(st.integers(1, 6), min_size=2, max_size=3))
    stored = Stored("t", "BF16", tuple(shape))
    cut: Stored | Slice = stored
    axis = 0
    for _ in range(draw(st.integers(1, 3))):  # a slice, perhaps of slices
        axis = draw(st.integers(0, len(shape) - 1))
        size = cut.shape[axis]
        start = draw(st.integers(0, size))
        cut = Slice(cut, axis, start, draw(st.integers(start, size)))
    return stored, draw(st.sampled_from([stored, cut, ToF32(cut), Concat((cut, cut), axis)]))


@given(expressions())
def test_no_other_byte_changes_a_weight(made: tuple[Stored, Expr]):
    stored, expr = made
    info = TensorInfo("t", "BF16", stored.shape, AT, stored.nbytes)
    mine = covered(list(extents(expr, {"t": info})), len(FILE))
    assert not mine[:AT].any() and not mine[AT + stored.nbytes :].any()

    def value(file: np.ndarray) -> bytes:
        whole = file[AT : AT + stored.nbytes].view(np.uint16).reshape(stored.shape)
        return np.ascontiguousarray(evaluate_weight(expr, lambda _: whole, initializer="w")).tobytes()

    assert value(np.where(mine, FILE, ~FILE)) == value(FILE)
    assert mine.any() == (value(~FILE) != value(FILE))


@given(st.lists(st.tuples(st.integers(0, 9000), st.integers(0, 9000), st.integers(1, 9000), st.integers(1, 5))))
def test_runs_are_the_pages_of_the_bytes(parts: list[tuple[int, int, int, int]]):
    made = [Extents(0, offset, nbytes, max(step, nbytes), count) for offset, nbytes, step, count in parts]
    size = 1 << 17
    pages = covered(made, size).reshape(-1, mmap.PAGESIZE).any(axis=1)
    runs = page_runs(made).get(0, [])
    assert runs == sorted(runs)
    assert all(stop < start for (_, stop), (start, _) in pairwise(runs))
    found = np.zeros(size, bool)
    for start, stop in runs:
        found[start:stop] = True
    assert (found.reshape(-1, mmap.PAGESIZE).any(axis=1) == pages).all()


def test_parts_of_heads_are_those_elements_and_name_all_rows_among_which_they_lie():
    """Keys and values of a weight [heads * (N + V), L]: a rank that reads the ones reads the others too."""
    stored = Stored("t", "BF16", (6, 4))
    heads = Reshape(Slice(stored, 0, 0, 6), (2, 3, 4))
    keys, values = Slice(heads, 1, 0, 1), Slice(heads, 1, 1, 3)
    whole = np.arange(24, dtype=np.uint16).reshape(6, 4)
    for part, expected in ((keys, whole[[0, 3]]), (values, whole[[1, 2, 4, 5]])):
        assert from_json(to_json(part)) == part
        assert np.array_equal(part.evaluate(lambda _: whole).reshape(-1, 4), expected)
        (found,) = extents(part, {"t": TensorInfo("t", "BF16", (6, 4), AT, 48)})
        assert (found.offset, found.nbytes, found.count) == (AT, 48, 1)
