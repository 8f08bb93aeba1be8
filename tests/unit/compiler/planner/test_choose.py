"""The best candidate by a goal: on the cheapest machine that reaches it, and a reason for each other one."""

from __future__ import annotations

from dataclasses import replace

import pytest

from llmc.compiler.planner.all_formats import Subject
from llmc.compiler.planner.choose import Choice
from llmc.compiler.planner.planner import Planned, plan
from llmc.compiler.planner.serve import Workload
from llmc.recipes.goal import parse_goal
from llmc.recipes.machines.table import Machine, machine_named
from llmc.recipes.recipe import Recipe

from .test_pieces import CONTEXT, config_of

LOAD = Workload(128, 64)
RECIPES = tuple(
    Recipe(default_format=name, targets=("sm_90",), max_batch=16, max_context=CONTEXT) for name in ("none", "fp8")
)
SUBJECT = Subject(config_of("llama"), "bfloat16", "BF16")


def machine(name: str, dollars: float | None, memory: int = 1 << 34) -> Machine:
    found = machine_named(name)
    return replace(found, dollars=dollars, chip=replace(found.chip, memory=memory))


def planned(goal: str, *machines: Machine, batch: int | None = None) -> Planned:
    return plan(SUBJECT, machines, RECIPES, LOAD, parse_goal(goal), batch=batch)


def lost_of(found: Planned, profile: str, format: str) -> Choice:
    return next(
        one
        for one in found.choices
        if (one.candidate.profile, one.candidate.recipe.default_format) == (profile, format)
    )


def test_every_split_and_format_is_a_candidate_and_the_best_is_first():
    found = planned("latency", machine("4xh100", None))
    names = {(one.candidate.profile, one.candidate.recipe.default_format) for one in found.choices}
    splits = ["sm_90", "sm_90-tp2", "sm_90-tp4", "sm_90-pp2", "sm_90-pp3", "sm_90-pp4", "sm_90-tp2-pp2"]
    assert names == {(split, name) for split in splits for name in ("none", "fp8")}
    best = found.choices[0]
    assert found.best is best and best.point is not None and best.point.sequences == 1
    least = min(one.candidate.points[0].tpot for one in found.choices)
    assert best.point.tpot == least and all(one.lost for one in found.choices[1:])


def test_requests_of_a_given_number_are_counted_once_whatever_number_of_copies_there_is():
    found = planned("throughput", machine("4xh100", None), batch=3)
    for each in found.choices:
        one, point = each.candidate, each.point
        assert point is not None and one.requests(point) == 3
        assert point.sequences == -(-3 // one.copies)
        assert one.figures(point)["decode"] == pytest.approx(3 * point.decode / point.sequences)
    alone = planned("throughput", machine("4xh100", None), batch=1)
    best = max(alone.choices, key=lambda each: each.point.decode if each.point else 0.0)
    assert alone.best is not None and alone.best.candidate.profile == best.candidate.profile  # idle copies make nothing


def test_throughput_counts_all_copies_on_a_machine():
    found = planned("throughput", machine("4xh100", None))
    one, four = (lost_of(planned("throughput", machine(name, None)), "sm_90", "fp8") for name in ("1xh100", "4xh100"))
    assert one.point is not None and four.point is not None
    assert (one.candidate.copies, four.candidate.copies) == (1, 4)
    alone, together = one.candidate.figures(one.point), four.candidate.figures(four.point)
    assert together["decode"] == pytest.approx(4 * alone["decode"])
    assert found.best is not None and found.best.candidate.copies == 4


def test_a_limit_is_named_with_what_is_over_it():
    found = planned("throughput,tpot<=1us", machine("1xh100", None))
    assert found.best is None
    assert all(one.lost.startswith("tpot ") and one.lost.endswith("% over 1 us") for one in found.choices)


def test_too_little_memory_is_named_with_its_parts():
    found = planned("latency", machine("1xh100", None, memory=(1 << 30) + (1 << 20)))
    (one, *_) = found.choices
    assert found.best is None and one.point is None and one.candidate.most == 0
    assert one.lost.startswith("needs ") and "weights" in one.lost and "a request of 192 tokens" in one.lost


def test_more_requests_than_fit_are_refused_with_what_fits():
    found = planned("throughput", machine("2xh100", None), batch=64)
    assert lost_of(found, "sm_90-tp2", "fp8").lost == "a copy has memory for 16 requests at once"
    kept = planned("throughput", machine("2xh100", None), batch=32)
    point = lost_of(kept, "sm_90", "fp8").point
    assert point is not None and point.sequences == 16  # of each of two copies


def test_the_cheapest_machine_wins_and_the_dearer_one_says_its_price():
    found = planned("throughput", machine("2xh100", 9.0), machine("1xh200", 5.0))
    assert found.best is not None and found.best.candidate.machine.name == "1xh200"
    dearer = [one for one in found.choices if one.candidate.machine.name == "2xh100"]
    assert dearer and all(one.lost == "costs $9.00 an hour, 1xh200 reaches the goal for $5.00" for one in dearer)


def test_a_machine_without_a_price_comes_after_those_with_one():
    found = planned("throughput", machine("1xh100", None), machine("2xh200", 8.0))
    assert found.best is not None and found.best.candidate.machine.name == "2xh200"
    assert any(one.lost == "has no known price, 2xh200 reaches the goal" for one in found.choices)
    alone = planned("throughput", machine("2xh100", None), machine("1xh200", None))
    assert alone.best is not None and alone.best.candidate.machine.name == "1xh200"


def test_a_slower_one_says_by_how_much_and_what_bounds_it():
    found = planned("latency", machine("4xh100", None))
    slow = lost_of(found, "sm_90-pp4", "none")
    assert "times worse; " in slow.lost and slow.lost.endswith(
        f"of its time is {slow.point.bound}" if slow.point else ""
    )


def test_a_degree_that_a_format_cannot_have_is_refused_with_the_reason():
    recipe = Recipe(default_format="int4-g128", targets=("sm_90",), max_batch=4, max_context=CONTEXT)
    wide = replace(SUBJECT, config=config_of("llama"))
    found = plan(wide, [machine("8xh100", None)], [recipe], LOAD, parse_goal("latency"))
    tps = {one.candidate.split.tp for one in found.choices}
    assert tps | {one.tp for one in found.refused} == {1, 2, 4, 8}


def test_a_model_that_fits_with_a_smaller_batch_is_planned_with_it():
    wide = replace(RECIPES[1], max_batch=1024)
    roomy = plan(SUBJECT, [machine("1xh100", None)], [wide], LOAD, parse_goal("latency")).choices[0].candidate
    least = plan(SUBJECT, [machine("1xh100", None)], [replace(wide, max_batch=8)], LOAD, parse_goal("latency"))
    needs = least.choices[0].candidate.needs
    assert needs.workspace < roomy.needs.workspace / 2
    tight = machine("1xh100", None, memory=(1 << 30) + needs.total + (needs.workspace // 2))
    found = plan(SUBJECT, [tight], [wide], LOAD, parse_goal("latency")).best
    assert found is not None and found.candidate.recipe.max_batch in (64, 8) and found.candidate.most >= 1
