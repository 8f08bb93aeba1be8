"""What runs only on a GPU is at least started without one: arguments, imports, arithmetic over the fake driver."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from argparse import Namespace
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from fake_driver import FakeApi, FakeKernel, Memory
from gpu.on_device import run_case
from toy_gpu import KERNELS, toy_engine, toy_plan

from llmc.compiler.targets.cuda.compile import Cubin, variant_of
from llmc.compiler.targets.cuda.kernel import Case
from llmc.compiler.targets.cuda.kernels import suites
from llmc.runtime.cuda.driver import Driver

ROOT = Path(__file__).resolve().parent.parent
FOLDER = ROOT / "benchmarks"


@pytest.fixture
def gpu_decode(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    monkeypatch.syspath_prepend(str(FOLDER))
    import gpu_decode  # type: ignore[import-not-found]

    yield gpu_decode


def run(*command: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, *map(str, command)], capture_output=True, text=True, cwd=ROOT)


@pytest.mark.parametrize("name", ["gpu_decode", "gpu_load"])
def test_dry_runs_say_what_they_would_do(name: str, tmp_path: Path):
    done = run(FOLDER / f"{name}.py", "--dry-run", "--quantize", "nvfp4", "--work", tmp_path)
    assert done.returncode == 0, done.stderr
    said = json.loads(done.stdout)
    assert said["engine"] == str(tmp_path / "8b-nvfp4-b8-c4096-sm90.llmc")
    assert said["build"][3:5] == ["build", str(tmp_path / "8b")]
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (("--batch", 9), "--batch [9]: from 1 to --max-batch 8"),
        (("--prompt", 4000), "--prompt and --tokens together: at most --max-context 4096"),
        (("--max-batch", 0), "0: a number above 0"),
        (("--engine", "gone.llmc"), "gone.llmc: no such engine"),
        (("--tokens", 16), "more than 16 --tokens"),
    ],
)
def test_arguments_are_judged_before_a_gpu_is_needed(arguments: tuple[Any, ...], text: str):
    done = run(FOLDER / "gpu_decode.py", "--dry-run", *arguments)
    assert done.returncode and text in done.stderr


@pytest.mark.slow
def test_the_whole_script_can_be_tried_dry(tmp_path: Path):
    environment = {**os.environ, "PYTHON": sys.executable, "OUT": str(tmp_path / "out"), "WORK": str(tmp_path / "work")}
    done = subprocess.run([FOLDER / "gpu.sh", "--dry-run"], env=environment, capture_output=True, text=True)
    ends = [line for line in done.stdout.splitlines() if line.startswith("== ")]
    assert len(ends) == 8 and all(": exit 0 after" in line for line in ends), done.stdout
    assert done.returncode == 0


def test_decode_is_measured_over_the_runtimes_own_path(
    gpu_decode: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    api = FakeApi(KERNELS)
    monkeypatch.setattr(Driver, "load", staticmethod(lambda ordinal=0: Driver(api)))
    monkeypatch.setattr("llmc.runtime.cuda.device._ordinal", lambda sm, what: 0)
    loaded = gpu_decode.common.load(toy_engine(tmp_path / "toy.llmc"), 90, max_batch=2)
    try:
        options = Namespace(prompt=7, tokens=40, rounds=2)
        found = gpu_decode.measure(loaded, 2, options, copy=1e9)
        # two rounds of 39 decode steps each, the replays, and what went before them
        assert api.calls["cuGraphLaunch"] == 2 * 39 + gpu_decode.REPLAYS + gpu_decode.WARM
        assert found["launches"] == 3 and found["cache_bytes"] == 2 * (7 + 20) * 4
        assert found["tokens_per_s"] == pytest.approx(2 / found["step_s"])
        assert found["percent_of_copy"] == pytest.approx(100 * found["bytes"] / found["step_s"] / 1e9)
        assert gpu_decode.common.copy_bandwidth(loaded.driver, nbytes=1 << 20, rounds=3) == 2 * (1 << 20) / 1e-3
    finally:
        loaded.executor.close()
    assert not (api.device.count or api.host.count or any(api.live.values()))
    assert toy_plan().programs[1].sequences == 2


def _taken(memory: Memory, grid: Any, asked: int, last: int, taken: int, tokens: int, *_scratch: int) -> None:
    ids = memory.array(asked, np.int32, tokens)
    kept = memory.array(last, np.int32, 7)
    inside = [kept[-1 - token] if -8 < token < 0 else max(token, 0) for token in ids]
    memory.array(taken, np.int32, tokens)[:] = inside


def _beyond(memory: Memory, grid: Any, asked: int, last: int, taken: int, tokens: int, *_scratch: int) -> None:
    memory.array(taken, np.int32, tokens + 1)[:] = 0


def _take_case() -> tuple[Case, Cubin]:
    case = next(case for case in suites()["tokens"].cases() if case.name == "take")
    types = variant_of(case.call).types
    cubin = Cubin(90, b"code", "take_kernel", types, 1, 1, 0, 0, 0, 1, 0, 1, False, False, 32, 0, 0, None)
    return case, cubin


def test_a_kernels_case_goes_to_the_device_and_back():
    case, cubin = _take_case()
    api = FakeApi({"take_kernel": FakeKernel(cubin.types, _taken)})
    found = run_case(Driver(api), case, cubin)
    assert torch.equal(found["taken"], torch.as_tensor(case.expected["taken"]))
    assert torch.equal(found["asked"], case.inputs["asked"])
    assert api.launched[0].grid == (2, 1, 1) and api.launched[0].threads == 32
    assert not api.device.count and not api.live["modules"]


def test_a_kernel_that_writes_beyond_its_tensor_is_caught():
    case, cubin = _take_case()
    with pytest.raises(AssertionError, match="written outside of taken"):
        run_case(Driver(FakeApi({"take_kernel": FakeKernel(cubin.types, _beyond)})), case, cubin)
