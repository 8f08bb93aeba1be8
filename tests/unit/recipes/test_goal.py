"""Goals: what the grammar takes and refuses, that a text is canonical, and which limit fails by how much."""

from __future__ import annotations

import math
from contextlib import suppress

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from llmc.recipes.goal import LIMITS, OBJECTIVES, Goal, Limit, parse_goal, shown_figure
from llmc.recipes.metrics import METRICS, size_text
from llmc.recipes.units import seconds_of, time_text
from llmc.runtime.errors import RecipeError
from llmc.runtime.machine import size_bytes


@pytest.mark.parametrize(
    ("text", "goal", "canonical"),
    [
        ("latency", Goal("latency"), "latency"),
        ("throughput", Goal(), "throughput"),
        ("tpot<=40ms", Goal(limits=(Limit("tpot", "<=", 0.04),)), "throughput,tpot<=40ms"),
        (" bytes , tpot < 0.2 s ", Goal("bytes", (Limit("tpot", "<", 0.2),)), "bytes,tpot<200ms"),
        ("ttft<=200us,latency", Goal("latency", (Limit("ttft", "<=", 0.0002),)), "latency,ttft<=200us"),
        ("bytes<=70GB", Goal(limits=(Limit("bytes", "<=", 70e9),)), "throughput,bytes<=70GB"),
        ("bytes<=70", Goal(limits=(Limit("bytes", "<=", 70 << 30),)), "throughput,bytes<=70GiB"),
        (
            "bits<=5.0,bits>=4",
            Goal(limits=(Limit("bits", "<=", 5), Limit("bits", ">=", 4))),
            "throughput,bits<=5,bits>=4",
        ),
        (
            "gpus>=4,gpus<=8",
            Goal(limits=(Limit("gpus", "<=", 8), Limit("gpus", ">=", 4))),
            "throughput,gpus<=8,gpus>=4",
        ),
        (
            "decode>=1e3,price<=9.5",
            Goal(limits=(Limit("price", "<=", 9.5), Limit("decode", ">=", 1000))),
            "throughput,price<=9.5,decode>=1000",
        ),
        ("prefill>100", Goal(limits=(Limit("prefill", ">", 100),)), "throughput,prefill>100"),
    ],
)
def test_a_goal_is_read(text: str, goal: Goal, canonical: str):
    assert parse_goal(text) == goal == parse_goal(canonical)
    assert str(goal) == canonical


LATER = "the search for formats under an accuracy limit is not built yet"


@pytest.mark.parametrize(
    ("text", "asked", "more"),
    [
        ("", "expected a part of a goal", "'tpot<=40ms', 'decode>=1000' or an objective: latency, throughput, bytes"),
        ("latency,", "expected a part of a goal", "found: ''"),
        ("latency,,bytes", "expected a part of a goal", "found: ''"),
        ("latency,bytes", "expected one objective of a goal", "found: latency, bytes"),
        ("bytes,bytes", "expected one objective of a goal", "found: bytes, bytes"),
        ("thruput", "cannot find the objective or limit 'thruput' (did you mean 'throughput'?)", "try: 'tpot<="),
        ("tpt<=4ms", "cannot find the metric 'tpt' (did you mean 'tpot'?)", "try: one of tpot, bits, bytes"),
        ("tpot", "expected a limit NAME<=NUMBER", "--goal 'tpot<=...' in quotes: a shell reads < and >"),
        ("latency,decode", "expected a limit NAME<=NUMBER", "--goal 'decode>=...' in quotes: a shell reads"),
        ("tpot=40ms", "expected a limit NAME<=NUMBER", "found: 'tpot=40ms'"),
        ("0.04>=tpot", "expected a limit NAME<=NUMBER", "in quotes"),
        ("latency<=40ms", "cannot limit latency, which is an objective", "try: 'tpot<=40ms' or 'ttft<=0.2s', or"),
        ("throughput>=9", "cannot limit throughput, which is an objective", "try: 'decode>=1000', or throughput alone"),
        ("loss", "cannot search for the least loss", f"found: {LATER}\n  try: a --quantize of your choice"),
        ("loss<=0.1", "cannot keep a limit on loss", "--gate 'kl_mean<=0.02'"),
        ("kl<=0.02", "cannot keep a limit on kl_mean", "of your choice, then llmc eval ENGINE --gate 'kl<=0.02'"),
        ("top1 >= 0.9", "cannot keep a limit on top1", "--gate 'top1 >= 0.9'"),
        ("ppl", "cannot keep a limit on perplexity", LATER),
        ("tpot<=4x", "expected a number in the limit of tpot", "try: 40ms, 200us, 0.2s or 0.2 (seconds)"),
        ("tpot<=-1ms", "expected a number in the limit of tpot", "'-1ms'"),
        ("decode>=fast", "expected a number in the limit of decode", "a plain number, in tokens/s"),
        ("bytes<=4x", "expected a size as the limit of bytes, such as 500M", "found: '4x'"),
        ("gpus<=2.5", "expected a whole number as the limit of gpus", "found: 2.5"),
        ("tpot<=1e999", "expected a finite limit of tpot", "found: inf"),
        ("tpot<=0", "expected a limit that can hold and can fail", "tpot<=0s: no tpot keeps it"),
        ("tpot<0s", "expected a limit that can hold and can fail", "no tpot keeps it"),
        ("tpot>=0", "expected a limit that can hold and can fail", "every tpot keeps it"),
        ("decode>-1", "expected a limit that can hold and can fail", "decode>-1: every decode keeps it"),
        ("gpus<1", "expected a limit that can hold and can fail", "gpus<1: no gpus keeps it"),
        ("gpus>=1", "expected a limit that can hold and can fail", "gpus>=1: every gpus keeps it"),
        ("tpot<=1ms,tpot<2ms", "expected one limit above tpot", "found: tpot<=1ms and tpot<2ms"),
        ("gpus>2,gpus>=3", "expected one limit below gpus", "found: gpus>2 and gpus>=3"),
        ("tpot<=1ms,tpot>=2ms", "expected limits that one plan can keep", "found: tpot<=1ms and tpot>=2ms"),
        ("tpot>=1ms,tpot<1ms", "expected limits that one plan can keep", "found: tpot<1ms and tpot>=1ms"),
        ("gpus<3,gpus>2", "expected limits that one plan can keep", "found: gpus<3 and gpus>2"),
    ],
)  # fmt: skip
def test_what_is_no_goal_is_refused(text: str, asked: str, more: str):
    with pytest.raises(RecipeError) as refused:
        parse_goal(text)
    assert refused.value.asked.startswith(asked)
    assert more in str(refused.value)


def test_values_are_checked_when_a_goal_is_made_without_a_text():
    with pytest.raises(RecipeError, match="cannot find the objective 'speed'"):
        Goal("speed")
    with pytest.raises(RecipeError, match="cannot find the limit 'kl_mean'\n  try: one of tpot, bits"):
        Limit("kl_mean", "<=", 0.1)
    with pytest.raises(RecipeError, match="expected a finite limit of tpot"):
        Limit("tpot", "<=", math.nan)


def test_objectives_and_limits_are_figures_of_one_table():
    assert {*OBJECTIVES.values()} <= {*LIMITS}
    assert {name for name in LIMITS if name in METRICS} == {n for n, one in METRICS.items() if one.command == "bench"}
    assert all(LIMITS[name] is METRICS[name] for name in LIMITS if name in METRICS)


def test_the_limits_that_fail_are_told_with_the_distance():
    goal = parse_goal("tpot<=40ms,decode>=1000,gpus<=8,bytes<80GB,price<=20,bits>=4,ttft<1s")
    figures = {"tpot": 0.052, "decode": 900.0, "gpus": 16.0, "bytes": 80e9, "bits": 3.5, "ttft": math.nan}
    assert goal.misses(figures) == (
        "tpot 52 ms is 30 % over 40 ms",
        "bits 3.5 is 12 % under 4",
        "bytes 80 GB is not below 80 GB",
        "gpus 16 is 8 over 8",
        "price is not known, price<=20 is asked",
        "decode 900 tokens/s is 10 % under 1,000 tokens/s",
        "ttft is not known, ttft<1s is asked",
    )
    kept = {"tpot": 0.04, "decode": 1000.0, "gpus": 8.0, "bytes": 79e9, "bits": 4.0, "ttft": 0.9, "price": 20.0}
    assert goal.misses(kept) == ()
    assert Goal().misses({}) == ()
    far = parse_goal("decode>=1000000000")
    assert far.misses({"decode": 15193.0}) == ("decode 15,193 tokens/s is 100 % under 1,000,000,000 tokens/s",)


def test_the_best_plan_has_the_least_rank():
    fast, wide = {"tpot": 0.01, "decode": 100.0, "bytes": 9.0}, {"tpot": 0.05, "decode": 900.0, "bytes": 5.0}
    best = {objective: min((fast, wide), key=Goal(objective).rank) for objective in OBJECTIVES}
    assert best == {"latency": fast, "throughput": wide, "bytes": wide}


@pytest.mark.parametrize(
    ("name", "value", "shown"),
    [
        ("tpot", 0.0521, "52.1 ms"), ("tpot", 2.0, "2 s"), ("tpot", 2e-5, "20 us"), ("tpot", 1e-9, "0.001 us"),
        ("bytes", 70.25e9, "70.2 GB"), ("decode", 12345.6, "12,346 tokens/s"), ("decode", 0.5, "0.5 tokens/s"),
        ("gpus", 8.0, "8"), ("price", 26.784, "26.8 dollars an hour"),
    ],
)  # fmt: skip
def test_figures_for_people_have_three_digits(name: str, value: float, shown: str):
    assert shown_figure(LIMITS[name], value) == shown


@st.composite
def goals(draw: st.DrawFn) -> Goal:
    """Any goal: limits that contradict each other are drawn again."""
    limits: list[Limit] = []
    for name in draw(st.sets(st.sampled_from([*LIMITS]))):
        for sign in draw(st.sets(st.sampled_from("<>"), min_size=1)):
            whole = st.integers(1, 10**6).map(float)
            number = whole if name in ("gpus", "bytes") else st.floats(1e-300, 1e300)
            with suppress(RecipeError):  # gpus<1 and the like
                limits.append(Limit(name, sign + draw(st.sampled_from(["", "="])), draw(number)))
    objective = draw(st.sampled_from([*OBJECTIVES]))
    try:
        return Goal(objective, tuple(limits))
    except RecipeError:
        return Goal(objective, tuple(one for one in limits if one.is_most))


@given(goals())
@example(Goal("latency", (Limit("tpot", "<=", 5e-324 * 3),)))
@example(Goal("bytes", (Limit("decode", ">", 0.1 + 0.2), Limit("bytes", "<", 12345.0))))
def test_a_goals_text_parses_back_to_it(goal: Goal):
    assert parse_goal(str(goal)) == goal
    assert str(parse_goal(str(goal))) == str(goal)


@given(st.text(max_size=30) | st.text("tpogus<>=,.0123m s", max_size=24))
def test_any_text_is_a_goal_or_refused(text: str):
    with suppress(RecipeError):
        assert parse_goal(str(parse_goal(text))) == parse_goal(text)


@given(st.floats(0, 1e12) | st.floats(allow_nan=False, allow_infinity=False).map(abs))
def test_times_are_written_exactly(seconds: float):
    assert seconds_of(time_text(seconds)) == seconds


@given(st.integers(1, 2**52) | st.integers(1, 4000).map(lambda count: count << 30))
def test_sizes_are_written_exactly(count: int):
    assert size_bytes(size_text(count)) == count


@pytest.mark.parametrize("text", ["", "ms", "1 m", "1 ks", "-1s", "1e", "1,5s", "0x1", "inf", "nan", "1 s "])
def test_what_is_no_time_is_none(text: str):
    assert seconds_of(text) is None
