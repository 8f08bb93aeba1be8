"""`--parallel auto` and `--quantize auto`: the recipe that a plan chooses, what is said of it, and what is refused."""

from __future__ import annotations

from typing import Any, Unpack

import pytest
from support.paths import PICO

from llmc.compiler.checkpoint.checkpoint import Checkpoint, open_checkpoint
from llmc.compiler.deploy import choice
from llmc.compiler.deploy.auto import Auto, auto_of
from llmc.recipes.flags import BuildFlags
from llmc.recipes.recipe import QuantizeRule, Recipe, with_flags
from llmc.runtime.errors import RecipeError, VerifyError

NAMES = ("--for", "--goal")


@pytest.fixture(scope="module")
def pico() -> Checkpoint:
    return open_checkpoint(PICO)


def auto(
    machine: str = "2xh100", goal: str = "latency", recipe: Recipe | None = None, **flags: Unpack[BuildFlags]
) -> Auto:
    found = auto_of(recipe, flags, machine, goal, NAMES)
    assert found is not None
    return found


def test_the_recipe_names_the_split_that_was_chosen(pico: Checkpoint):
    asked = auto(goal="latency,gpus<=2", parallel="auto", quantize="int8", max_batch=2)
    recipe, said = choice.decide(asked, pico)
    (split,) = recipe.parallel
    assert recipe == with_flags(None, targets="sm_90", parallel=split, quantize="int8", max_batch=2)
    assert said.startswith(f"parallel auto on 2xh100: {recipe.splits[0].profile('sm_90')}, weights int8")
    assert "tpot " in said and " requests, bound by " in said and "\n  next sm_90" in said


def test_formats_and_rules_are_the_recipe_s(pico: Checkpoint):
    own = Recipe(default_format="int4", rules=(QuantizeRule("lm_head", "int8"),), targets=("sm_90", "cpu"), max_batch=1)
    recipe, _ = choice.decide(auto(recipe=own, parallel=["auto"]), pico)
    assert (recipe.default_format, recipe.rules, recipe.targets) == (own.default_format, own.rules, own.targets)
    assert recipe.max_context is None and recipe.parallel != ("auto",)


def test_the_format_is_chosen_for_a_given_split(pico: Checkpoint, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("llmc.compiler.planner.planner.cpu_count", lambda: 1)  # no other processes
    recipe, said = choice.decide(auto(goal="bytes", quantize="auto", parallel="tp2", max_batch=1), pico)
    assert recipe.parallel == ("tp2",) and said.startswith("quantize auto on 2xh100: sm_90-tp2, weights ")
    assert recipe.default_format in ("mxfp4", "int4-g128", "nvfp4") and (recipe.activations, recipe.kv) == (
        "fp8",
        "fp8",
    )
    assert with_flags(None, quantize=recipe.default_format).rules == recipe.rules


def test_4_bit_activations_that_are_asked_for_are_those_of_weights_in_their_format(pico: Checkpoint):
    asked = auto("1xb200", "throughput", quantize="auto", activations="nvfp4", max_batch=2)
    held = {one.default_format: one.activations for one in asked.recipes}
    assert held == {**dict.fromkeys(held, "fp8"), "none": "none", "nvfp4": "nvfp4"}
    asked = auto("1xb200", "throughput", quantize="nvfp4", activations="nvfp4", parallel="auto", max_batch=2)
    recipe, said = choice.decide(asked, pico)
    assert (recipe.activations, recipe.targets) == ("nvfp4", ("sm_100",)) and "on 1xb200: sm_100, weights nvfp4" in said


def test_a_goal_that_no_split_reaches(pico: Checkpoint):
    with pytest.raises(VerifyError, match=r"cannot reach the goal latency,tpot<=1us on 2xh100\n") as raised:
        choice.decide(auto(goal="latency,tpot<=1us", parallel="auto", quantize="fp8"), pico)
    assert "comes nearest: tpot " in raised.value.found and raised.value.fix.startswith("llmc plan --for 2xh100")


def test_nothing_is_left_to_a_plan():
    assert auto_of(None, {"parallel": "tp2"}, None, None, NAMES) is None
    assert auto_of(None, {}, None, None, NAMES) is None


@pytest.mark.parametrize(
    ("machine", "goal", "flags", "said"),
    [
        ("8xh200", None, {}, "cannot use --for 8xh200, which would change nothing"),
        (None, "latency", {"parallel": "tp2"}, "cannot use --goal latency, which would change nothing"),
        (None, None, {"quantize": "auto"}, "expected --for with quantize auto"),
        ("2xh100,4xh100", None, {"parallel": "auto"}, "expected one machine as --for\n  found: 2xh100,4xh100"),
        ("cpu", None, {"parallel": "auto"}, "cannot plan for cpu"),
        ("2xh100", "fast", {"parallel": "auto"}, "cannot find the objective or limit 'fast'"),
        (
            "2xh100",
            None,
            {"parallel": "auto", "targets": "cpu,a100"},
            "cannot choose parallel for 2xh100\n  found: targets cpu, sm_80\n  try: a build for sm_90, or ",
        ),
        ("2xh100", None, {"parallel": "auto,tp2"}, "expected parallel auto alone\n  found: auto, tp2"),
    ],
)
def test_what_is_refused(machine: str | None, goal: str | None, flags: Any, said: str):
    with pytest.raises(RecipeError) as raised:
        auto_of(None, flags, machine, goal, NAMES)
        with_flags(None, **flags)
    assert said in str(raised.value)
