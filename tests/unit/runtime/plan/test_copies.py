"""Copies of weights that a plan makes once are kept where they leave memory, else made in steps."""

from __future__ import annotations

import pytest
from support.dumps import drafted_plan, legal_graph

from llmc.runtime.errors import ResourceError
from llmc.runtime.plan.budget import aligned, budget
from llmc.runtime.plan.copies import copies_of, fitted, in_steps, kept
from llmc.runtime.plan.plan import Plan

SLOTS = 2
PLENTY = 1 << 40


@pytest.fixture(scope="module")
def plan(tmp_path_factory: pytest.TempPathFactory) -> Plan:
    """4-bit weights whose large steps multiply FP8."""
    return drafted_plan(legal_graph(tmp_path_factory.mktemp("copies"), "sm_90", "nvfp4", "fp8"), "fp8")


def weights(plan: Plan) -> int:
    return sum(aligned(one.bytes({})) for one in plan.tensors.values() if one.kind == "weight")


def fit(plan: Plan, free: int):
    return fitted(plan, weights=weights(plan), slots=SLOTS, state_slots=SLOTS, free=free, what="the profile")


def least(plan: Plan) -> int:
    """Bytes with which the cache gets all its blocks."""
    found = budget(plan, weights=weights(plan), slots=SLOTS, state_slots=SLOTS, free=PLENTY, what="the profile")
    return int(found.fixed + found.cache / 0.95) + 1


def test_every_launch_that_reads_a_copy_follows_the_one_that_makes_it(plan: Plan):
    lean = in_steps(plan)
    copies = copies_of(plan)
    assert plan.setup is not None and len(copies) == 2 * len(plan.setup.launches) > 0
    assert lean.setup is None and not copies & lean.tensors.keys()
    for before, after in zip(plan.programs, lean.programs, strict=True):
        readers = [one for one in before.kernels if copies & {*one.tensors}]
        assert len(after.launches) == len(before.launches) + len(readers)
        for index, launch in enumerate(after.kernels):
            if plan.modules[launch.module].kernel == "linear_fp8":
                maker = after.kernels[index - 1]
                assert plan.modules[maker.module].kernel == "expand_fp8" and {*maker.writes} <= {*launch.tensors}
                assert maker.label == launch.label
    assert Plan.from_json(lean.to_json(), what="plan") == lean


def test_room_that_copies_share_holds_the_largest(plan: Plan):
    lean = in_steps(plan)
    shared = {name: one.bytes({}) for name, one in lean.tensors.items() if name.startswith("copies.")}
    sizes = [plan.tensors[name].bytes({}) for name in copies_of(plan)]
    assert max(shared.values()) == max(sizes) and sum(shared.values()) < sum(sizes)


def test_copies_are_kept_where_there_is_memory(plan: Plan):
    chosen, found = fit(plan, PLENTY)
    assert chosen is plan
    assert found.state - fit(in_steps(plan), PLENTY)[1].state > 0


def test_copies_are_made_in_steps_where_memory_is_short(plan: Plan):
    """With room for a cache without copies, and for too little of one with them."""
    free = least(in_steps(plan))
    chosen, found = fit(plan, free)
    assert chosen == in_steps(plan)
    assert found.blocks == fit(in_steps(plan), free)[1].blocks
    with pytest.raises(ResourceError, match="cannot allocate"):
        fit(plan, found.fixed)


@pytest.mark.parametrize(
    ("with_copies", "without", "keeps"),
    [(None, 4, False), (2, 4, True), (1, 4, False), (4, 4, True), (None, None, False)],
)
def test_half_of_the_blocks_are_enough(with_copies: int | None, without: int | None, keeps: bool):
    blocks = [None if count is None else {"blocks": count} for count in (with_copies, without)]
    assert kept(*blocks) is keeps
