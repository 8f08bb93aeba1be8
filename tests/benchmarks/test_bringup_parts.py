"""What the calls to a lent GPU are made of: journals that survive, valid random weights, errors that say where."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support.paths import ROOT

sys.path.append(str(ROOT / "benchmarks"))
from bringup import decode, journal  # pyright: ignore[reportMissingImports]
from bringup import perform as performing  # pyright: ignore[reportMissingImports]
from bringup.bench import Bench  # pyright: ignore[reportMissingImports]
from bringup.carry import CarriedCase, Carry  # pyright: ignore[reportMissingImports]
from bringup.cases import order  # pyright: ignore[reportMissingImports]
from bringup.dump import (  # pyright: ignore[reportMissingImports]
    Recorded,
    RecordedLaunch,
    RecordedStep,
    read,
    write,
)
from bringup.journal import Journal  # pyright: ignore[reportMissingImports]
from bringup.numbers import distance, numbers  # pyright: ignore[reportMissingImports]
from bringup.perform import leave_out, perform  # pyright: ignore[reportMissingImports]
from bringup.step import Item, Step  # pyright: ignore[reportMissingImports]
from bringup.table import table  # pyright: ignore[reportMissingImports]
from bringup.weightless import kind_of, valid  # pyright: ignore[reportMissingImports]

from llmc.runtime.errors import LlmcError
from llmc.runtime.plan.plan import Tensor


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    return Bench(Carry(tmp_path / "none"), Journal.fresh(tmp_path / "out", "first"))


def item(name: str, result: Mapping[str, Any]) -> Item:
    return Item(name, lambda bench: result)


def test_a_journal_goes_on_after_a_line_that_was_cut(tmp_path: Path):
    first = Journal.fresh(tmp_path, "first")
    first.note(card="A card")
    first.begin("a/one", 5)
    first.end("a/one", {"result": {"ok": True, "value": np.float32(2), "none": float("nan")}})
    first.begin("a/two", 7)
    with open(first.lines, "a") as file:
        file.write('{"end": "a/tw')
    second = Journal.reopened(tmp_path, "first")
    assert second.outcomes == {"a/one": {"result": {"ok": True, "value": 2.0, "none": "nan"}}}
    assert second.under_way is not None and (second.under_way.name, second.under_way.limit) == ("a/two", 7)
    second.end("a/two", {"error": "cut"})
    assert (second.under_way, second.ok) == (None, False)
    found = json.loads((tmp_path / "first.json").read_text())
    assert (found["card"], found["ok"], [*found["outcomes"]]) == ("A card", False, ["a/one", "a/two"])


def test_items_run_once_and_wrong_ones_do_not_stop_the_others(bench: Bench):
    ran = []

    def fails(_: Bench) -> Mapping[str, Any]:
        ran.append("fails")
        raise LlmcError("asked", found="CUDA_ERROR_INVALID_VALUE: no")

    def later(bench: Bench) -> Iterator[Item]:
        yield item("one", {"ok": False, "number": 3})
        if bench.result("b/one").get("number") == 3:
            yield item("because of one", {})
        raise ValueError("no more can be told")

    steps = [Step("a", 10, lambda bench: [Item("fails", fails), item("fine", {})]), Step("b", 10, later)]
    assert perform(steps, bench, time.monotonic() + 60) == 0
    again = Bench(bench.carry, Journal.reopened(bench.journal.folder, "first"))
    assert perform(steps, again, time.monotonic() + 60) == 0
    assert ran == ["fails"]
    found = bench.journal.outcomes
    assert [*found] == ["a/fails", "a/fine", "b/one", "b/because of one", "b/items"]
    assert (found["a/fails"]["cuda"], found["a/fails"]["sticky"]) == ("INVALID_VALUE", False)
    assert found["a/fails"]["where"].startswith("test_bringup_parts.py:")
    assert "ValueError: no more can be told" in found["b/items"]["error"]
    lines = table(bench.journal)
    assert "a            1 right, 1 wrong, 0 left out, 0.0 s" in lines and "  one: number 3" in lines


def test_what_does_not_fit_into_its_step_has_what_the_others_left(bench: Bench, clock: _Clock):
    steps = [
        Step("a", 0.05, lambda bench: [Item("slow", clock.slow), item("late", {}), item("later", {})]),
        Step("b", 9, lambda bench: [item("x", {})]),
    ]
    perform(steps, bench, clock.now + 60)
    assert [*bench.journal.outcomes] == ["a/slow", "b/x", "a/late", "a/later"] and bench.journal.ok


def test_a_call_that_is_over_leaves_the_rest_out(bench: Bench, clock: _Clock):
    steps = [
        Step("a", 0.05, lambda bench: [Item("slow", clock.slow), item("late", {})]),
        Step("b", 9, lambda bench: [Item("x", clock.slow)]),
    ]
    perform(steps, bench, clock.now + 0.35)
    assert [*bench.journal.outcomes] == ["a/slow", "b/x", "a/late"]
    assert bench.journal.outcomes["a/late"] == {"left out": "the time of the call is over"}


def test_what_was_not_run_is_named(bench: Bench):
    steps = [Step("a", 5, lambda bench: [item("one", {}), item("two", {})])]
    bench.journal.end("a/one", {"result": {}})
    leave_out(steps, bench, "no time")
    assert bench.journal.outcomes["a/two"] == {"left out": "no time"} and not bench.journal.ok


class _Clock:
    """A clock that only `slow` moves: how busy the machine is decides nothing."""

    now = 1000.0

    def monotonic(self) -> float:
        return self.now

    perf_counter = monotonic

    def slow(self, _: Bench) -> Mapping[str, Any]:
        self.now += 0.12
        return {}


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> _Clock:
    clock = _Clock()
    for module in (journal, performing):
        monkeypatch.setattr(module, "time", clock)
    return clock


@pytest.mark.parametrize("dtype", ["bf16", "f16", "f32"])
def test_random_weights_are_small_numbers(dtype: str):
    random = np.frombuffer(np.random.default_rng(0).bytes(4099), np.uint8)
    made = valid(random, dtype)
    found = numbers(made[:4096], dtype, (4096 // (4 if dtype == "f32" else 2),))
    assert made.size == 4099 and np.isfinite(found).all()
    assert 0.007 < np.abs(found).min() <= np.abs(found).max() < 0.032
    assert dtype == "f32" or (found < 0).any()


def test_random_codes_are_no_nan_in_any_format():
    every = np.arange(256, dtype=np.uint8)
    assert not {*valid(every, "u8 codes").tolist()} & {0x7F, 0xFF}
    assert {*valid(every, "u8 scales").tolist()} == {*range(0x30, 0x38)}
    assert kind_of("a.weight_scale.nvfp4", Tensor("weight", "u8", ("4",))) == "u8 scales"
    assert kind_of("a.weight.nvfp4", Tensor("weight", "u8", ("4",))) == "u8 codes"


def test_a_distance_says_where_it_is_largest():
    expected = np.array([[1.0, np.nan, -4.0], [np.inf, 2.0, 0.0]])
    found = np.array([[1.5, 99.0, -3.0], [np.inf, 2.0, 0.0]])
    assert distance(found, expected) == {"error": 0.25, "finite": True, "at": [0, 2], "found": -3.0, "expected": -4.0}
    found[1, 1] = np.nan
    told = distance(found, expected)
    assert (told["error"], told["finite"], told["at"]) == (np.inf, False, [1, 1])
    assert distance(found, np.full((2, 3), np.nan)) == {"error": 0.0, "finite": True}


def test_cases_come_in_the_order_in_which_they_are_wanted():
    names = {
        "moe.sort:x": "moe_sort",
        "linear.small:fp8-f16-f16-3x4": "linear_small",
        "linear.small:dense-bf16-bf16-3x4": "linear_small",
        "embed:fp8": "embed",
        "norm:gather": "rms_norm",
        "linear.small:int8-f16-f16-3x4": "linear_small",
    }
    cases = [CarriedCase(name, kernel, (1, 1, 1), (), (), 0.0) for name, kernel in names.items()]
    found = [case.name.partition("-3x4")[0] for case in sorted(cases, key=lambda case: order(case, case.code))]
    assert found == [
        "norm:gather",
        "embed:fp8",
        "linear.small:dense-bf16-bf16",
        "linear.small:fp8-f16-f16",
        "linear.small:int8-f16-f16",
        "moe.sort:x",
    ]


def test_a_dump_is_read_as_it_was_written(tmp_path: Path):
    launch = RecordedLaunch("a label", "a_kernel", {"y": np.array([[1.5, np.nan]], np.float32)})
    step = RecordedStep(2, {"tokens": 1, "sequences": 1, "rows": 1}, {"token_ids": np.array([7], np.int32)}, (launch,))
    write(tmp_path / "dump" / "x.npz", Recorded("digest", (step, step)))
    found = read(tmp_path / "dump" / "x.npz")
    assert (found.plan, len(found.steps)) == ("digest", 2)
    for one in found.steps:
        assert (one.program, one.sizes, one.inputs["token_ids"].tolist()) == (2, step.sizes, [7])
        assert (one.launches[0].label, one.launches[0].kernel) == ("a label", "a_kernel")
        np.testing.assert_array_equal(one.launches[0].written["y"], launch.written["y"])


def test_a_plan_that_is_not_carried_is_its_steps_error(bench: Bench):
    perform([decode.STEP], bench, time.monotonic() + 60)
    assert "a carried plan '8b-fp8'\n  found: none" in bench.journal.outcomes["decode/items"]["error"]
