"""The calls speed and tuned, rehearsed over the fake driver: what fails is named, and everything else is measured."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from support.fakes.libcuda import compiled, needs_libcuda
from support.paths import ROOT

sys.path.append(str(ROOT / "benchmarks"))
from bringup import batches, carry, counters, throughput  # pyright: ignore[reportMissingImports]
from bringup.calls import CALLS  # pyright: ignore[reportMissingImports]
from bringup.carry import Carry  # pyright: ignore[reportMissingImports]
from support.carries.without_code import PLANS, small_carry

pytestmark = [*needs_libcuda, pytest.mark.slow]
ILLEGAL = 700
NOT_FINITE = {"sweep", "prompts"}
"""Steps whose results no kernel of the fake computes: every tile is timed, and said to give numbers that are none."""
NCU = """#!/bin/sh
echo '==PROF== Connected'
echo '"ID","Kernel Name","Metric Name","Metric Unit","Metric Value"'
echo '"0","linear_small_kernel","DRAM Throughput","%","81.5"'
echo '"1","linear_small_kernel","DRAM Throughput","%","82.5"'
"""


@dataclass(frozen=True)
class Stage:
    """A carried folder, and the environment of processes that find the fake driver."""

    folder: Path
    environment: dict[str, str]
    out: Path

    def rehearse(self, call: str, **more: str) -> dict[str, dict[str, Any]]:
        """Outcomes by step and item. more: of the environment."""
        script = str(ROOT / "benchmarks" / "gpu_first.py")
        command = [sys.executable, script, call, "--carry", str(self.folder), "--out", str(self.out)]
        done = subprocess.run(command, env={**self.environment, **more}, capture_output=True, text=True, timeout=250)
        assert done.returncode == 1, done.stderr
        steps: dict[str, dict[str, Any]] = {}
        for name, outcome in json.loads((self.out / f"{call}.json").read_text())["outcomes"].items():
            step, _, item = name.partition("/")
            steps.setdefault(step, {})[item] = outcome
        (self.out / "said").write_text(done.stdout)
        return steps


@pytest.fixture(scope="module")
def stage(tmp_path_factory: pytest.TempPathFactory) -> Stage:
    folder = tmp_path_factory.mktemp("speed")
    return Stage(small_carry(folder / "carry", folder / "work"), compiled(folder, moved=1 << 16), folder / "out")


def wrong(items: dict[str, Any]) -> list[str]:
    """Items that did not come to an end."""
    return [name for name, one in items.items() if "result" not in one]


def entry(stage: Stage, name: str) -> str:
    return Carry(stage.folder).code[name].entry


def test_every_step_of_speed_is_measured(stage: Stage):
    found = stage.rehearse("speed", PATH="/usr/bin:/bin")
    planned = {step.name for step in CALLS["speed"].steps}
    assert planned - {"launches nvfp4 batch 128"} <= {*found}, "a plan that is not carried has no table"
    assert {step: wrong(items) for step, items in found.items() if wrong(items)} == {}
    rows = found["batches"]
    assert len(rows) == 3 * 2 * len(batches.BATCHES)
    assert rows["8b-fp8, batch 8, pdl"]["result"]["tokens_per_s"] > 0
    assert {*found["throughput"]} == {throughput.row_name(carry.MANY, batch) for batch in throughput.BATCHES}
    for step in NOT_FINITE:
        for item in found[step].values():
            rows = item["result"]["candidates"]
            assert not item["result"]["ok"] and all(row["seconds"] > 0 and not row["finite"] for row in rows)
    promoted = [row["tile"]["promote"] for row in next(iter(found["prompts"].values()))["result"]["candidates"]]
    assert {*promoted} == {0, 1}
    assert found["counters"]["fp8"]["result"] == {"skipped": "no ncu here"}
    assert "measured over predicted, Fake H100:" in (stage.out / "said").read_text()


@pytest.mark.soak
def test_failures_in_tiles_and_beside_the_bench_cost_only_themselves(stage: Stage, tmp_path: Path):
    tiles, prompt = Carry(stage.folder).swept[0], Carry(stage.folder).swept[-1]
    (tmp_path / "torch.py").write_text("raise ImportError('no torch here')\n")
    (tmp_path / "ncu").write_text(NCU)
    (tmp_path / "ncu").chmod(0o755)
    found = stage.rehearse(
        "speed",
        LLMC_FAKE_STICKY=f"{entry(stage, tiles.candidates[3].code)}:{ILLEGAL}",
        LLMC_FAKE_EXIT=entry(stage, prompt.candidates[1].code),
        PATH=f"{tmp_path}:/usr/bin:/bin",
        PYTHONPATH=f"{tmp_path}:{os.environ.get('PYTHONPATH', '')}",
    )
    failed = {step: wrong(items) for step, items in found.items() if wrong(items)}
    (tile,) = {*failed.pop("sweep")} & {f"small {tiles.n}x{tiles.k} fp8 1"}
    assert "CUDA_ERROR_ILLEGAL_ADDRESS" in found["sweep"][tile]["error"]
    assert failed == {"prompts": [[*found["prompts"]][-1]], "torch": ["torch"]}
    assert "signal SIGABRT" in found["prompts"][failed["prompts"][0]]["error"]
    assert "no torch here" in found["torch"]["torch"]["error"]
    counted = found["counters"]["fp8"]["result"]["metrics"]
    assert counted == {"DRAM Throughput [%]": ["81.5", "82.5"]}


@pytest.mark.soak
def test_failures_of_plans_cost_only_their_rows(stage: Stage):
    plan = Carry(stage.folder).plan(carry.NVFP4)
    quantized = next(one for one in plan.modules if one.constants.get("FORMAT") == "nvfp4")
    assert quantized.code is not None
    found = stage.rehearse(
        "speed", LLMC_FAKE_STICKY=f"attention_prefill:{ILLEGAL}", LLMC_FAKE_EXIT=quantized.code.entry
    )
    failed = {step: wrong(items) for step, items in found.items() if wrong(items)}
    assert failed.pop("prefill") == ["8b-fp8, 2048 tokens", "8b-bf16, 2048 tokens"]
    assert len(failed.pop("launches nvfp4")) == 1
    assert all(name.startswith("8b-nvfp4, ") for name in failed.pop("batches")) and failed == {}


@pytest.mark.soak
def test_a_kernel_that_fails_in_large_steps_costs_those_steps_and_their_sampling(stage: Stage):
    plan = Carry(stage.folder).plan(carry.MANY)
    kernel = next(
        launch.module
        for program in plan.programs
        if program.decode and program.sequences == 64
        for launch in program.launches
        if plan.modules[launch.module].kernel == "attention_decode_fp8"
    )
    using = [p.sequences for p in plan.programs if p.decode and kernel in {one.module for one in p.launches}]
    code = plan.modules[kernel].code
    assert code is not None
    found = stage.rehearse("speed", LLMC_FAKE_STICKY=f"{code.entry}:{ILLEGAL}")
    failed = {step: wrong(items) for step, items in found.items() if wrong(items)}
    rows = [throughput.row_name(carry.MANY, batch) for batch in throughput.BATCHES if batch in using]
    assert failed.pop("throughput") == rows and throughput.row_name(carry.MANY, 64) in rows
    assert failed.pop("sampling") == [throughput.row_name(carry.MANY, 64)]
    assert {*failed} <= {"launches batch 128"}
    assert found["sampling"][throughput.row_name(carry.FP8, 1)]["result"]["ms"] > 0


@pytest.mark.soak
def test_a_failure_in_tuned_costs_only_itself(stage: Stage):
    (stage.out / "first.json").unlink(missing_ok=True)
    case = next(one for one in Carry(stage.folder).cases if one.name.startswith("norm:"))
    found = stage.rehearse("tuned", LLMC_FAKE_STICKY=f"{entry(stage, case.code)}:{ILLEGAL}")
    shared = {one.name for one in Carry(stage.folder).cases if one.code == case.code}
    assert {name for name in wrong(found["cases"]) if not name.startswith("memcheck")} == shared
    assert len(found["cases"]) >= len(Carry(stage.folder).cases) and wrong(found["batches"]) == []


@pytest.mark.soak
def test_tuned_asks_again_only_what_has_changed(stage: Stage):
    case, other = Carry(stage.folder).cases[:2]
    known = {f"cases/{one.name}": {"result": {"ok": True, "code": one.code}} for one in Carry(stage.folder).cases}
    known[f"cases/{case.name}"] = {"result": {"ok": True, "code": "of another source"}}
    known[f"cases/{other.name}"] = {"result": {"ok": False, "code": other.code}}
    stage.out.mkdir(exist_ok=True)
    (stage.out / "first.json").write_text(json.dumps({"outcomes": known}))
    found = stage.rehearse("tuned")
    assert {*found["cases"]} == {case.name, other.name}
    assert len(found["batches"]) == 3 * len(batches.BATCHES) and wrong(found["batches"]) == []
    assert "carried engines" in found["agree"]["items"]["error"]
    assert "carried kernels of an engine" in found["engine"]["build"]["error"]
    assert {*wrong(found["engine"])} == {"build", "cold start", "tokens", "throughput"}
    assert found["engine"]["soak"]["result"] == {"skipped": "no engine is carried"}


def test_metrics_are_read_from_among_other_lines():
    assert counters.metrics(NCU.replace("echo '", "").replace("'\n", "\n")) == {"DRAM Throughput [%]": ["81.5", "82.5"]}
    assert counters.metrics("==ERROR== no kernels were profiled\n") == {}


def test_the_same_sources_give_the_same_bytes(stage: Stage, tmp_path: Path):
    again = small_carry(tmp_path / "carry", tmp_path / "work")
    files = sorted(path.relative_to(again) for path in again.rglob("*") if path.is_file())
    assert {str(path) for path in files} >= {"code.bin", "code.json", "cases.npz", f"plans/{next(iter(PLANS))}.json.gz"}
    for path in files:
        assert (again / path).read_bytes() == (stage.folder / path).read_bytes(), path
