"""Waves of prompts: requests that are alike, on an engine that mixes no prompts into decode steps."""

from __future__ import annotations

import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llmc.compiler.planner.candidates import Pricer
from llmc.compiler.planner.pieces import MIXED, SMALL
from llmc.compiler.planner.rates import FITTED
from llmc.compiler.planner.serve import Server, Workload
from llmc.compiler.planner.steps import Clock, Step
from llmc.recipes.machines.table import machine_named

from .test_pieces import RECIPES, pieces_of

MACHINE = machine_named("8xh100")


def server(pp: int, load: Workload) -> Server:
    return Pricer(pieces_of("llama", "fp8", 1), RECIPES["fp8"], load, FITTED).server(MACHINE, pp)


def no_exchange(collective: str, exchanged: int) -> float:
    raise AssertionError("one rank exchanges nothing")


def test_one_request_reads_its_prompt_then_decodes():
    load = Workload(input=60, output=11)
    found = server(1, load).waves(load, 1)
    pieces = pieces_of("llama", "fp8", 1)
    clock, stage = Clock(pieces, MACHINE.chip, FITTED), (0, 7)
    host = FITTED.step + FITTED.sequence
    prompt = Step(0, 65, prompt=60, prompts=1, before=30)
    first = clock.stage(stage, MIXED, prompt, no_exchange).seconds + host
    token = clock.stage(stage, SMALL, Step(1, 65), no_exchange).seconds + host
    assert (found.ttft, found.tpot) == (pytest.approx(first), pytest.approx(token))
    assert found.decode == pytest.approx(11 / (first + 10 * token))


@given(
    st.integers(1, 40),
    st.integers(1, 100),
    st.integers(2, 90),
    st.sampled_from([None, 16, 64]),
    st.sampled_from([1, 2, 3]),
)
@settings(max_examples=40, deadline=None)
def test_a_wave_is_first_tokens_and_the_time_of_the_others(
    requests: int, input: int, output: int, prefill: int | None, pp: int
):
    load = Workload(input, output, prefill)
    found = server(pp, load).waves(load, requests)
    wave = requests * output / found.decode
    assert found.ttft + (output - 1) * found.tpot == pytest.approx(wave)
    assert found.prefill == pytest.approx(requests * input / wave)
    assert sum(found.shares.values()) == pytest.approx(1) and min(found.shares.values()) >= 0
    alone = server(pp, load).waves(load, 1)
    assert found.tpot >= alone.tpot * 0.999 and found.decode >= alone.decode * 0.999
    assert math.isfinite(found.ttft) and found.ttft >= alone.ttft * 0.4
