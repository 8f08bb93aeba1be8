"""A step costs what the launches of the real plan cost, one by one; loads and splits behave as they must."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llmc.compiler.planner.all_formats import AllFormats, Logical, Subject
from llmc.compiler.planner.candidates import Pricer, exchanges
from llmc.compiler.planner.pieces import LARGE, MIXED, SMALL, Pieces
from llmc.compiler.planner.rates import FITTED, Rates
from llmc.compiler.planner.serve import Served, Workload
from llmc.compiler.planner.steps import Clock, Step
from llmc.recipes.machines.table import machine_named
from llmc.recipes.recipe import with_flags
from llmc.runtime.dtypes import FP4_FORMATS
from llmc.runtime.engine_file.split import Split
from llmc.runtime.plan.between import Collective
from llmc.runtime.plan.formula import value
from llmc.runtime.plan.plan import Plan
from llmc.runtime.plan.price import position_bytes, position_operations

from .test_pieces import BATCH, CONTEXT, RECIPES, config_of, pieces_of, real_plans

PERFECT = Rates(memory=1, cache=1, product=1, attention=1, link=1, launch=0, step=0, sequence=0)
MACHINE = machine_named("8xh100")
STEPS = {
    SMALL: Step(sequences=5, context=100),
    LARGE: Step(sequences=BATCH, context=100),
    MIXED: Step(sequences=3, context=100, prompt=90, prompts=2, before=30),
}


def one_by_one(plan: Plan, program: int, step: Step, rates: Rates, heads: int) -> float:
    """The seconds of a program's launches on MACHINE, by the formulas of docs/planner.md, in a plain loop."""
    chip, seconds = MACHINE.chip, 0.0
    for launch in plan.programs[program].launches:
        if isinstance(launch, Collective):
            if launch.collective != "recv":
                count = value(launch.count, step.sizes)
                item = {"bf16": 2, "f32": 4}[plan.programs[program].buffers[launch.tensors[0]].dtype]
                parts = plan.rank.tp if launch.collective in ("all_gather", "reduce_scatter") else 1
                ranks = 2 if launch.collective == "send" else plan.rank.tp
                seconds += MACHINE.link.seconds(launch.collective, count * item * parts, ranks) / rates.link
            continue
        kernel = plan.modules[launch.module].kernel
        share = rates.product if kernel.startswith("linear") else rates.attention
        peak = (chip.fp8 or 0.0) if kernel == "linear_fp8" else chip.bf16
        moved = value(launch.bytes, step.sizes) / chip.bandwidth / rates.memory
        seconds += math.hypot(moved, value(launch.operations, step.sizes) / peak / share) + rates.launch
    read = decoded = prompted = 0
    for cache in plan.caches:
        tensors = [one for one in plan.tensors.values() if one.kind == "cache" and one.shape[0] == cache.size]
        seen, before = (min(at, cache.window or at) for at in (step.context, step.before))
        read += position_bytes(plan, cache, tensors) * (seen * step.sequences + before * step.prompts)
        operations = position_operations(tensors, heads)
        decoded += operations * seen * step.sequences
        prompted += operations * before * step.prompt
    peak = chip.bf16 * rates.attention
    return seconds + math.hypot(read / chip.bandwidth / rates.cache, decoded / peak) + prompted / peak


@pytest.mark.parametrize("rates", [PERFECT, FITTED], ids=["perfect", "fitted"])
@pytest.mark.parametrize(("name", "recipe", "split"), [("llama", "fp8", "tp2-pp3"), ("windows", "int4", "pp3")])
def test_a_step_costs_what_its_launches_cost(name: str, recipe: str, split: str, rates: Rates):
    degrees = Split.parse(split)
    pieces = pieces_of(name, recipe, degrees.tp)
    clock, moved = Clock(pieces, MACHINE.chip, rates), exchanges(MACHINE, degrees, rates)
    heads = config_of(name).decoder.layers[0].mixer.heads // degrees.tp
    for (stage, plan), exchange in zip(real_plans(name, recipe, degrees), moved, strict=True):
        decode = [index for index, program in enumerate(plan.programs) if program.decode]
        numbers = {SMALL: decode[0], LARGE: decode[-1], MIXED: len(plan.programs) - 1}
        for program, step in STEPS.items():
            found = clock.stage(stage, program, step, exchange).seconds
            assert found == pytest.approx(one_by_one(plan, numbers[program], step, rates, heads), rel=1e-9)


@pytest.mark.parametrize("recipe", ["fp8", "int4"])
def test_one_target_stands_for_all_that_have_fp8(recipe: str):
    logical, found = Logical(Subject(config_of("llama"), "bfloat16", "BF16")), {}
    for target in ("sm_89", "sm_90", "sm_100", "sm_120"):
        asked = replace(RECIPES[recipe], targets=(target,), max_context=CONTEXT)
        pieces = AllFormats(logical, 2).pieces(asked)
        assert isinstance(pieces, Pieces)
        blocks = {name: (block.work, block.weights, block.caches) for name, block in pieces.blocks.items()}
        found[target] = blocks, [pieces.parts(stage, BATCH) for stage in ((0, 3), (3, 5), (5, 7), (0, 7))]
    assert all(one == found["sm_90"] for one in found.values())


@pytest.mark.parametrize("format", FP4_FORMATS)
def test_one_target_stands_for_all_that_have_fp4(format: str):
    logical, found = Logical(Subject(config_of("llama"), "bfloat16", "BF16")), []
    for target in ("sm_100", "sm_120"):
        asked = with_flags(
            None, quantize=format, activations=format, targets=(target,), max_context=CONTEXT, max_batch=BATCH
        )
        pieces = AllFormats(logical, 2).pieces(asked)
        assert isinstance(pieces, Pieces)
        assert any(work.kernel == "linear_fp4" for block in pieces.blocks.values() for work in block.work[MIXED])
        found.append({name: (block.work, block.weights, block.caches) for name, block in pieces.blocks.items()})
    assert found[0] == found[1]


def served(split: str, load: Workload, sequences: int, rates: Rates = FITTED, name: str = "llama") -> Served:
    degrees = Split.parse(split)
    pricer = Pricer(pieces_of(name, "fp8", degrees.tp), RECIPES["fp8"], load, rates)
    return pricer.server(MACHINE, degrees.pp).served(load, sequences)


@settings(max_examples=30, deadline=None)
@given(st.sampled_from(["tp1", "tp2", "pp3", "tp2-pp3"]), st.integers(1, 90), st.integers(1, 90), st.integers(1, 64))
def test_figures_of_any_load_are_finite_and_hang_together(split: str, prompt: int, answer: int, sequences: int):
    load = Workload(prompt, answer)
    one = served(split, load, sequences)
    assert all(math.isfinite(x) and x > 0 for x in (one.tpot, one.ttft, one.decode, one.prefill))
    assert sum(one.shares.values()) == pytest.approx(1) and min(one.shares.values()) >= 0
    assert one.decode <= sequences / one.tpot * (1 + 1e-9)  # all of them get a token each time
    assert one.prefill == pytest.approx(one.decode * prompt / answer)
    more = served(split, load, 2 * sequences)
    assert more.tpot >= one.tpot * (1 - 1e-9) and more.decode >= one.decode * 0.9


def test_a_lone_request_leaves_the_other_stages_idle():
    one, full = (served("pp7", Workload(8, 64), count, PERFECT) for count in (1, 56))
    assert one.bound == "bubble" and one.shares["bubble"] == pytest.approx(6 / 7, abs=0.02)
    assert full.shares["bubble"] < 0.3


def test_prompts_longer_than_a_step_take_several():
    short, long = (served("tp1", Workload(length, 1), 1) for length in (64, 128))
    cut = served("tp1", Workload(128, 1, prefill=64), 1)
    assert long.ttft < cut.ttft and cut.ttft > 1.5 * short.ttft


def test_no_first_token_comes_before_the_step_that_reads_its_prompt_ends():
    for prompt, answer in ((1, 1), (8, 1), (90, 8)):
        one = served("tp1", Workload(prompt, answer), 60)
        assert one.ttft >= one.tpot * (1 - 1e-9)
