"""Splits by name and back, the places of ranks, and the labels of their graphs."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmc.runtime.engine_file.split import MAX_DEGREE, Split, label_of, parts_of, split_name, target_of

SPLITS = st.integers(1, MAX_DEGREE).flatmap(
    lambda tp: st.builds(Split, st.just(tp), st.integers(1, MAX_DEGREE), st.integers(1, MAX_DEGREE // tp))
)


@given(SPLITS)
def test_a_name_is_read_back(split: Split):
    assert Split.parse(split.name) == split
    profile = split.profile("sm_90")
    assert profile == "sm_90" if split.ranks == 1 else profile == f"sm_90-{split.name}"
    assert (target_of(profile), Split.parse(split_name(profile))) == ("sm_90", split)


@given(SPLITS, st.data())
def test_each_rank_has_one_place(split: Split, data: st.DataObject):
    rank = data.draw(st.integers(0, split.ranks - 1))
    stage, shard = split.stage(rank), split.shard(rank)
    assert 0 <= stage < split.pp and 0 <= shard < split.shards == split.tp * split.ep
    assert split.rank(stage, shard) == rank
    group, place = split.group(shard)
    assert 0 <= group < split.ep and 0 <= place < split.tp and group * split.tp + place == shard


@given(st.builds(Split, *[st.integers(1, 4)] * 3), st.sampled_from(["cpu", "sm_90"]))
def test_labels_are_of_a_profile_and_a_rank(split: Split, target: str):
    labels = split.labels(target)
    assert len({*labels}) == split.ranks
    if split.ranks == 1:
        assert labels == (target,) and parts_of(target) == (target, None)
    else:
        assert [parts_of(label) for label in labels] == [(split.profile(target), rank) for rank in range(split.ranks)]
    assert {target_of(label) for label in labels} == {target}
    assert label_of("cpu-tp2", 1) == "cpu-tp2.rank-1"


@pytest.mark.parametrize(
    ("text", "split"),
    [
        ("tp1", Split()),
        ("pp1", Split()),
        ("tp2-pp1", Split(2)),
        ("pp3", Split(1, 3)),
        ("ep1", Split()),
        ("ep4", Split(ep=4)),
        ("tp2-ep1-pp3", Split(2, 3)),
        ("tp2-ep4-pp3", Split(2, 3, 4)),
    ],
)
def test_degrees_of_one_may_be_said(text: str, split: Split):
    assert Split.parse(text) == split


@pytest.mark.parametrize(
    "text",
    [
        "",
        "tp",
        "2",
        "tp0",
        "tp02",
        "tp2pp2",
        "tp2-",
        "-pp2",
        "pp2-tp2",
        "tp2-tp2",
        "TP2",
        " tp2",
        "tp2-pp2-x",
        "ep2-tp2",
        "pp2-ep2",
        "ep",
    ],
)
def test_what_is_no_split_is_refused(text: str):
    with pytest.raises(
        ValueError, match=r"a split is tpN, epN, ppN, or some in this order, such as tp4-pp2 or tp2-ep4$"
    ):
        Split.parse(text)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("tp257", "degrees 257 and 1: each is from 1 to 256"),
        ("pp999", "degrees 1 and 999: each is from 1 to 256"),
        ("tp2-pp300", "degrees 2 and 300: each is from 1 to 256"),
        ("ep300", "degrees 1, 300 and 1: each is from 1 to 256"),
        ("tp16-ep32", "tp16-ep32 of 512 shards: a stage has at most 256"),
    ],
)
def test_degrees_have_a_limit(text: str, message: str):
    with pytest.raises(ValueError, match=f"^{message}$"):
        Split.parse(text)
