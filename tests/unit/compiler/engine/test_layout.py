"""Proves where tensors lie: whole groups, aligned, in order, in as few files of the asked size as that allows."""

from __future__ import annotations

import re

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from llmc.compiler.engine.layout import FileLayout, Groups, MaxShardSize, default_reserve, lay_out
from llmc.runtime.engine_file.bind import Stored
from llmc.runtime.errors import RecipeError
from llmc.runtime.machine import size_bytes

NBYTES = st.sampled_from((0, 4, 100, 255, 256, 257, 1000, 5000))
SIZES = st.lists(st.lists(NBYTES, min_size=1, max_size=3), max_size=30)
RESERVE = 300
ROOM = 128 * 256
"""What the first header keeps for the list of files, if there are several."""


def groups_of(sizes: list[list[int]]) -> Groups:
    return [[Stored(f"{g}.{t}", "U8", (size,)) for t, size in enumerate(group)] for g, group in enumerate(sizes)]


def weights(file: FileLayout) -> list[str]:
    return [name for name in file.infos if not name.startswith("__llmc__/")]


@given(SIZES, st.integers(RESERVE, ROOM + 20_000), st.integers(0, 2000))
def test_files_hold_whole_groups_in_order_and_keep_to_the_size(sizes: list[list[int]], size: int, sections: int):
    groups = groups_of(sizes)
    try:
        files = lay_out(groups, RESERVE, MaxShardSize(size, sections))
    except RecipeError:
        assume(False)
        raise
    assert [name for file in files for name in weights(file)] == [one.name for group in groups for one in group]
    for number, file in enumerate(files):
        assert file.end + (sections if number == 0 else 0) <= size
        assert file.data_start % 256 == 0
        at = file.data_start
        for info in file.infos.values():  # they cover the file, as the format demands
            assert (info.offset, info.file) == (at, number)
            at += info.nbytes
        assert at == file.end
    infos = {name: info for file in files for name, info in file.infos.items()}
    for group in groups:
        first, *rest = [infos[one.name] for one in group]
        assert first.offset % 256 == 0
        for one in rest:
            assert (one.file, one.offset) == (first.file, first.offset + first.nbytes)
            first = one
    following = [next(group for group in groups if group[0].name == weights(file)[0]) for file in files[1:]]
    for number, group in enumerate(following):  # a file ends only where the next group has no room
        end = files[number].end + (sections if number == 0 else 0)
        assert end + 3 * 256 + 300 * len(group) + sum(one.nbytes for one in group) > size


@given(SIZES, st.integers(0, 2000), st.integers(1, 40_000))
def test_the_least_size_is_said(sizes: list[list[int]], sections: int, size: int):
    groups = groups_of(sizes)
    try:
        lay_out(groups, RESERVE, MaxShardSize(size, sections))
    except RecipeError as refusal:
        found = re.search(r"--max-shard-size (\S+) or more", str(refusal))
        assert found, refusal
        least = size_bytes(found[1])
        assert lay_out(groups, RESERVE, MaxShardSize(least, sections))
        with pytest.raises(RecipeError):
            lay_out(groups, RESERVE, MaxShardSize(least - 1000, sections))


def test_an_engine_that_fits_is_laid_out_as_without_a_size():
    groups = groups_of([[100, 5], [4000], [0]])
    (alone,) = lay_out(groups, RESERVE, None)
    assert lay_out(groups, RESERVE, MaxShardSize(alone.end + 70, 70)) == [alone]
    with pytest.raises(RecipeError, match="cannot split the engine into at most 256 files of 4933 bytes") as refusal:
        lay_out(groups, RESERVE, MaxShardSize(alone.end + 69, 70))
    assert "33350 bytes of header and sections in the first, and 4000 bytes of one tensor (1.0)" in str(refusal.value)


def test_no_more_than_256_files():
    groups = groups_of([[100_000]] * 300)
    assert len(lay_out(groups, RESERVE, MaxShardSize(202_000, 0))) == 151
    with pytest.raises(RecipeError, match=r"at most 256 files of 150000 bytes") as refusal:
        lay_out(groups, RESERVE, MaxShardSize(150_000, 0))
    assert "--max-shard-size 202K or more" in str(refusal.value)


def test_what_lies_side_by_side_is_not_cut():
    groups = groups_of([[60_000, 60_000], [10]])
    with pytest.raises(RecipeError, match=r"120000 bytes of 2 tensors that lie side by side \(0\.0\)"):
        lay_out(groups, RESERVE, MaxShardSize(100_000, 0))


def test_a_size_above_10_mb_is_said_in_mb():
    with pytest.raises(RecipeError, match="--max-shard-size 21M or more"):
        lay_out(groups_of([[20_000_000]]), RESERVE, MaxShardSize(1_000_000, 0))


def test_the_default_reserve_fits_large_models() -> None:
    groups = [[Stored(f"model.layers.{index}.weight", "BF16", (8192, 28672))] for index in range(560)]
    assert 2 << 20 < default_reserve(groups) < 4 << 20
