"""What runs only on a GPU is at least started without one: arguments, imports, arithmetic over the fake driver."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from argparse import Namespace
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from gpu.on_device import run_case
from support.fakes.driver import FakeApi, FakeKernel, Memory
from support.paths import ROOT
from support.toy_gpu import HEIGHT, KERNELS, answer, toy_engine, toy_plan

sys.path.append(str(ROOT / "benchmarks"))
import gpu_common as common  # pyright: ignore[reportMissingImports]
import gpu_decode  # pyright: ignore[reportMissingImports]
import gpu_load  # pyright: ignore[reportMissingImports]
import gpu_soak  # pyright: ignore[reportMissingImports]
import gpu_throughput  # pyright: ignore[reportMissingImports]
import gpu_tokens  # pyright: ignore[reportMissingImports]
import gpu_torch  # pyright: ignore[reportMissingImports]
import host_step  # pyright: ignore[reportMissingImports]
from gpu_tokens import Trace  # pyright: ignore[reportMissingImports]

from llmc.compiler.targets.cuda.call import Case
from llmc.compiler.targets.cuda.cubins.compile import Cubin, specialization_of
from llmc.compiler.targets.cuda.kernels import suites
from llmc.runtime.cuda import gpus
from llmc.runtime.cuda.driver import Driver
from llmc.runtime.plan.plan import MachineCode
from llmc.runtime.scheduling.request import Request

GPU = gpus.Gpu(0, "Toy H200", 90, 1 << 30)
FOLDER = ROOT / "benchmarks"


@pytest.fixture
def toy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., AbstractContextManager[tuple[Any, FakeApi]]]:
    """Loads the toy model onto a fake driver, which must be left as it was."""

    @contextmanager
    def load(kernels: Mapping[str, FakeKernel] = KERNELS, *, slots: int = 4, **more: Any) -> Iterator[tuple[Any, Any]]:
        api = FakeApi(kernels)
        monkeypatch.setattr("llmc.runtime.cuda.driver.import_module", lambda name: api)
        monkeypatch.setattr("llmc.runtime.cuda.gpus.detect", lambda: gpus.DetectedGpus("13.0", (GPU,)))
        loaded = common.load(toy_engine(tmp_path / "toy.llmc"), 90, max_batch=slots, **more)
        try:
            yield loaded, api
        finally:
            loaded.executor.close()
        assert not (api.device.count or api.host.count or any(api.live.values()))

    return load


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
    ("name", "arguments", "text"),
    [
        ("gpu_decode", ("--batch", 9), "--batch [9]: from 1 to --max-batch 8"),
        ("gpu_decode", ("--prompt", 4000), "--prompt and --tokens together: at most --max-context 4096"),
        ("gpu_decode", ("--max-batch", 0), "0: a number above 0"),
        ("gpu_decode", ("--engine", "gone.llmc"), "gone.llmc: no such engine"),
        ("gpu_decode", ("--tokens", 16), "more than 16 --tokens"),
        ("gpu_throughput", ("--output", 2000), "--input and --output together: at most --max-context 2304"),
    ],
)
def test_arguments_are_judged_before_a_gpu_is_needed(name: str, arguments: tuple[Any, ...], text: str):
    done = run(FOLDER / f"{name}.py", "--dry-run", *arguments)
    assert done.returncode and text in done.stderr


def test_decode_is_measured_over_the_runtimes_own_path(toy: Any):
    with toy(slots=2) as (loaded, api):
        options = Namespace(prompt=7, tokens=40, rounds=2)
        found = gpu_decode.measure(loaded, 2, options, copy=1e9)
        # two rounds of 39 decode steps each, the replays, and what went before them
        assert api.calls["cuGraphLaunch"] == 2 * 39 + gpu_decode.REPLAYS + gpu_decode.WARM
        assert found["launches"] == 3 and found["cache_bytes"] == 2 * (7 + 20) * 4
        assert found["tokens_per_s"] == pytest.approx(2 / found["step_s"])
        assert found["percent_of_copy"] == pytest.approx(100 * found["bytes"] / found["step_s"] / 1e9)
        assert found["gpu_percent_of_copy"] == pytest.approx(100 * 2 * 7 * 4 / found["gpu_step_s"] / 1e9)
        assert common.copy_bandwidth(loaded.driver, nbytes=1 << 20, rounds=3) == 2 * (1 << 20) / 1e-3
        assert common.upload_bandwidth(loaded.driver, nbytes=1 << 20, rounds=3) == (1 << 20) / 1e-3
        assert loaded.device.timings["capture"] > 0
    assert toy_plan().programs[1].sequences == 2


def test_a_soak_returns_all_blocks_and_compares_greedy_answers(toy: Any):
    with toy() as (loaded, _):
        found = gpu_soak.soak(loaded.executor, 24, seed=1)
    assert found["ok"] and found["blocks_returned"] == found["blocks"]
    assert (found["requests"], found["greedy"], found["greedy_that_differ"], found["noise"]) == (24, 18, 0, 0.0)
    again, other = (gpu_soak.requests_of(loaded.executor, 24, seed) for seed in (1, 2))
    assert repr(again) == repr(gpu_soak.requests_of(loaded.executor, 24, 1)) != repr(other)
    assert all(len(one.prompt) + one.max_tokens <= loaded.executor.max_context for one in again)
    starts = {one.prompt[:4] for one in again}
    assert len(starts) < len(again), "some prompts begin like others"


def test_a_soak_finds_tokens_that_change_in_company(toy: Any):
    def wrong(memory: Memory, grid: Any, *values: int) -> None:
        KERNELS["choose"].compute(memory, grid, *values)
        if values[5] > 1:
            memory.array(values[2], np.int32, values[5])[-1] = 1

    kernels = {**KERNELS, "choose": FakeKernel(KERNELS["choose"].types, wrong)}
    with toy(kernels) as (loaded, _):
        found = gpu_soak.soak(loaded.executor, 12, seed=1)
    assert not found["ok"] and found["greedy_that_differ"] > 0
    assert found["margins_beyond_noise"] and min(found["margins_beyond_noise"]) == 2 * HEIGHT


def traced(toy: Any, count: int) -> list[Trace]:
    with toy() as (loaded, _):
        return gpu_tokens.traces(loaded.executor, [(3, 4), (90,) * 70, (1,)], count)


def test_a_trace_is_what_the_model_says(toy: Any):
    found = traced(toy, 9)
    assert [one.tokens for one in found] == [answer(one.prompt, 9) for one in found]
    assert all(one.margin(step) == 2 * HEIGHT for one in found for step in range(9))


def test_ties_are_closer_than_twice_the_noise():
    one = Trace((1,), ((5, 6), (7, 8)), ((3.0, 2.9), (3.0, 2.0)))
    assert gpu_tokens.tie(one, 0, noise=0.06) and not gpu_tokens.tie(one, 0, noise=0.04)
    assert not gpu_tokens.tie(one, 1, noise=0.06)
    assert gpu_tokens.first_difference([1, 2, 3], [1, 2, 3]) is None
    assert gpu_tokens.first_difference([1, 2], [1, 2, 3]) == 2
    assert gpu_tokens.first_difference([1, 9, 3], [1, 2, 3]) == 1


def test_throughput_counts_full_steps_and_the_gpus_idle_time(toy: Any):
    with toy(kind=gpu_throughput.TimedDriver) as (loaded, _):
        found = gpu_throughput.throughput(loaded, 0, 70, 30, copy=1e9)
        assert found["requests"] == gpu_throughput.fitting(loaded, 100) == 4
        assert found["decode_tokens_per_s"] == pytest.approx(4 / found["decode_step_s"])
        assert found["tokens_per_s"] == pytest.approx(4 * 30 / found["seconds"])
        assert found["step_bytes"] == 4 * 4 * (70 + 15)
        # the fake's clock counts what the stream holds: three of a graph's five pieces are its launches
        assert 0 < found["idle_share"] < 0.5 and found["graphs"] >= 29


def test_idle_time_is_what_no_graph_covers():
    assert gpu_throughput.idle_share([[(0, 3), (4, 8)], [(0, 2)]]) == pytest.approx(0.1)
    assert gpu_throughput.idle_share([[(0, 1), (1, 2)]]) == 0
    assert np.isnan(gpu_throughput.idle_share([]))


def test_steps_with_prompts_end_a_phase(toy: Any):
    with toy(kind=gpu_throughput.TimedDriver) as (loaded, _):
        for _ in range(2):
            gpu_tokens.generate(loaded.executor, [Request((1, 2), 5), Request((3,), 5)])
        assert [len(phase) for phase in loaded.driver.spans()] in ([4, 4], [5, 5])


def test_the_hosts_part_is_every_step_of_every_request(tmp_path: Path):
    options = Namespace(context=100, steps=100)
    found = [host_step.measure(toy_engine(tmp_path / "toy.llmc"), batch, options) for batch in (1, 4)]
    assert [one["batch"] for one in found] == [1, 4]
    for one in found:
        assert one["host_s"] > 0 and one["host_over_gpu"] == one["host_s"] / one["gpu_s"]
    cached = 4 * 100 * 4  # float32, of each sequence
    assert found[1]["gpu_s"] == pytest.approx(cached / host_step.CHIP.reachable_bandwidth)


def test_a_cold_start_is_told_in_parts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    api = FakeApi(KERNELS)
    monkeypatch.setattr("llmc.runtime.cuda.driver.import_module", lambda name: api)
    monkeypatch.setattr("llmc.runtime.cuda.gpus.detect", lambda: gpus.DetectedGpus("13.0", (GPU,)))
    spawned = time.perf_counter()
    monkeypatch.setattr(sys, "argv", ["-c", str(toy_engine(tmp_path / "toy.llmc")), "sm_90", str(spawned)])
    exec(compile(gpu_load.CHILD, "the child process", "exec"), {})
    parts = json.loads(capsys.readouterr().out)
    whole = ("interpreter", "imports", "open", "load", "first token")
    assert sum(parts[name] for name in whole) <= parts["to first token"] <= time.perf_counter() - spawned
    assert sum(parts[f"load: {name}"] for name in ("context", "kernels", "memory", "weights")) <= parts["load"]
    assert 0 < parts["capture"] < parts["first token"] < parts["four tokens"]
    assert parts["weights bytes"] > 0 and api.calls["cuGraphLaunch"] == 3


def test_a_product_that_torch_refuses_ends_nothing(capsys: pytest.CaptureFixture[str]):
    def seconds(calls: Any) -> float:
        return calls[0]()

    def refused() -> float:
        raise RuntimeError("no such kernel")

    found = gpu_torch.measured({"rows": [refused], "tensor": [lambda: 2.0]}, seconds)
    assert found == {"tensor": 2.0} and "rows: not available: no such kernel" in capsys.readouterr().out


def test_torchs_weights_are_more_than_a_cache_holds():
    assert [gpu_torch.copies(nbytes) for nbytes in (1 << 20, 64 << 20, 1 << 30)] == [8, 4, 1]
    assert gpu_torch.products(8, 16, 16, False) == {} or torch.cuda.is_available()


def _taken(memory: Memory, grid: Any, asked: int, last: int, taken: int, tokens: int, *_scratch: int) -> None:
    ids = memory.array(asked, np.int32, tokens)
    kept = memory.array(last, np.int32, 7)
    inside = [kept[-1 - token] if -8 < token < 0 else max(token, 0) for token in ids]
    memory.array(taken, np.int32, tokens)[:] = inside


def _beyond(memory: Memory, grid: Any, asked: int, last: int, taken: int, tokens: int, *_scratch: int) -> None:
    memory.array(taken, np.int32, tokens + 1)[:] = 0


def _take_case() -> tuple[Case, Cubin]:
    case = next(case for case in suites()["sampling.tokens"].cases() if case.name == "take")
    types = specialization_of(case.call).types
    cubin = Cubin(90, b"code", "", types, MachineCode("take_kernel", 0, 32, 0))
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
