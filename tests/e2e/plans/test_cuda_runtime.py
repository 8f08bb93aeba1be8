"""The whole runtime over the real Python bindings and a fake libcuda: what the driver is given, call by call.

Kernels compute nothing there; what they are launched with is compared with the plan.
"""

from __future__ import annotations

import json
import struct
import subprocess
import sys
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from support.engines import NARROW, NARROW_BATCH, small_checkpoint
from support.fakes import libcuda_session as session
from support.fakes.libcuda import BINDINGS, Line, compiled, needs_libcuda, trace, with_bindings

import llmc
from llmc.runtime.cuda.driver import DEFAULT_SHARED
from llmc.runtime.engine_file.file import EngineFile
from llmc.runtime.plan.formula import value
from llmc.runtime.plan.plan import Argument, Launch, Plan

pytestmark = needs_libcuda
DYNAMIC_SHARED = 8
"""CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES."""
RUNS = [(pdl, graphs) for pdl in (False, True) for graphs in (False, True)]


@dataclass(frozen=True)
class Ran:
    """What the process said, and the lines of a run's trace."""

    plan: Plan
    said: dict[str, Any]
    traces: dict[str, list[Line]]


@pytest.fixture(scope="module")
def engine(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One layer, room for four sequences of four blocks."""
    folder = tmp_path_factory.mktemp("runtime")
    wider = {**NARROW, "vocab_size": 4096, "num_hidden_layers": 1}  # all ids of the tokenizer
    checkpoint = small_checkpoint(folder / "small", tokenizer=True, **wider)
    return llmc.build(checkpoint, folder / "e.llmc", targets=["sm_90"], max_batch=NARROW_BATCH, quantize="fp8")


@pytest.fixture(scope="module", params=BINDINGS, ids=lambda version: version or "installed")
def ran(request: pytest.FixtureRequest, engine: Path, tmp_path_factory: pytest.TempPathFactory) -> Ran:
    folder = tmp_path_factory.mktemp("ran")
    environment = with_bindings(compiled(folder), request.param)
    command = [sys.executable, session.__file__, str(engine), str(folder)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    said = json.loads(done.stdout.splitlines()[-1])
    assert request.param in ("", said["bindings"])
    with EngineFile.open(engine) as file:
        plan = Plan.from_json(file.section(file.manifest.profiles["sm_90"].graph), what="the plan")
    return Ran(plan, said, {name: list(trace(folder / f"{name}.txt")) for name in said["runs"]})


@pytest.fixture(params=RUNS, ids=lambda run: f"pdl={run[0]:d},graphs={run[1]:d}")
def name(request: pytest.FixtureRequest) -> str:
    pdl, graphs = request.param
    return f"{pdl:d}-{graphs:d}"


def test_requests_get_all_their_tokens_in_mixed_and_decode_steps(ran: Ran, name: str):
    run = ran.said["runs"][name]
    assert run["tokens"] == list(session.ANSWERS)
    steps = [(ran.plan.programs[program].decode, sizes) for program, sizes in run["steps"]]
    assert {sizes["sequences"] for decode, sizes in steps if decode} >= {1, 2, 4}
    assert any(not decode and 1 < sizes["sequences"] < sizes["tokens"] for decode, sizes in steps)


def test_each_cubin_is_loaded_once_and_its_kernels_are_allowed_their_shared_memory(ran: Ran, name: str):
    binaries = [module.code for module in ran.plan.modules if module.code is not None]
    lines = ran.traces[name]
    loading = [line for line in lines if line.name == "loading"]
    assert Counter(line.number("bytes") for line in loading) == Counter(
        size for _, size in {(code.offset, code.size) for code in binaries}
    )
    assert {(line.number("ptx"), line.number("code")) for line in loading} == {(0, 0)}
    settings = [line for line in lines if line.name == "cuFuncSetAttribute"]
    asked = [line.number("value") for line in settings if line.number("attribute") == DYNAMIC_SHARED]
    wide = sorted(code.shared for code in binaries if code.shared > DEFAULT_SHARED)
    assert wide and sorted(asked) == wide


def test_steps_launch_what_the_plan_says_or_replay_it(ran: Ran, name: str):
    pdl, graphs = name.split("-")
    launched = [line for line in ran.traces[name] if line.name in ("cuLaunchKernelEx", "cuGraphLaunch")]
    allocated = [line for line in ran.traces[name] if line.name == "allocated"]
    memory = [(int(line.facts["at"], 16), line.number("bytes")) for line in allocated]
    lines, captured = iter(launched), set()
    for program, sizes in ran.said["runs"][name]["steps"]:
        chosen = ran.plan.programs[program]
        due = [(launch, grid) for launch in chosen.launches if all(grid := _grid(launch, sizes))]
        replayed = chosen.decode and graphs == "1"
        for index, (launch, grid) in enumerate(due if not replayed or program not in captured else ()):
            line = next(lines)
            _check_launch(ran.plan, launch, grid, line)
            _check_values(ran.plan, launch, sizes, line, memory)
            assert (line.number("captured"), line.facts["pdl"]) == (int(replayed), pdl if index else "0")
        if replayed:
            captured.add(program)
            line = next(lines)
            assert (line.name, line.number("nodes")) == ("cuGraphLaunch", len(due))
    assert next(lines, None) is None
    calls = Counter(line.name for line in ran.traces[name])
    for call in ("cuStreamBeginCapture", "cuGraphInstantiate", "cuGraphUpload", "cuGraphDestroy", "cuGraphExecDestroy"):
        assert calls[call] == len(captured), call
    assert bool(captured) == (graphs == "1")


def test_nothing_is_left_when_the_context_is_given_back(ran: Ran, name: str):
    line = ran.traces[name][-1]
    assert line.name == "cuDevicePrimaryCtxRelease"
    assert line.facts == dict.fromkeys(("bytes", "streams", "events", "modules", "graphs"), "0")


def _grid(launch: Launch, sizes: dict[str, int]) -> tuple[int, ...]:
    return tuple(value(formula, sizes) for formula in launch.grid)


def _check_launch(plan: Plan, launch: Launch, grid: tuple[int, ...], line: Line) -> None:
    module = plan.modules[launch.module]
    code = module.code
    assert code is not None
    found = (line.name, line.facts["entry"], line.facts["grid"], line.number("threads"), line.number("shared"))
    assert found == ("cuLaunchKernelEx", code.entry, ",".join(map(str, grid)), 32 * module.warps, code.shared)


def _check_values(plan: Plan, launch: Launch, sizes: dict[str, int], line: Line, memory: list[tuple[int, int]]) -> None:
    """What the driver reads of each parameter, by the sizes that the cubin says."""
    values = [int(text, 16) for text in line.facts["values"].split(",")]
    types = plan.modules[launch.module].types
    assert values[len(types) :] == [0, 0], "Triton's scratch, of which these kernels need none"
    for kind, argument, found in zip(types, launch.arguments, values[:-2], strict=True):
        if kind.startswith("*"):
            assert any(start <= found < start + nbytes for start, nbytes in memory), (launch.label, argument)
        else:
            assert found == _bits(kind, argument, sizes), (launch.label, argument)


def _bits(kind: str, argument: Argument, sizes: dict[str, int]) -> int:
    number = argument.resolve({}, sizes)
    form = {"i32": "<i4x", "i64": "<q", "fp32": "<f4x", "fp64": "<d"}[kind]
    return int.from_bytes(struct.pack(form, number), "little")


@pytest.mark.parametrize("version", BINDINGS)
def test_a_run_says_that_the_driver_compiled_what_it_refused(engine: Path, tmp_path: Path, version: str):
    with EngineFile.open(engine) as file:
        plan = Plan.from_json(file.section(file.manifest.profiles["sm_90"].graph), what="the plan")
    command = [sys.executable, "-m", "llmc", "run", str(engine), "x", "--max-tokens", "2", "--profile", "sm_90"]
    given = {"LLMC_FAKE_REFUSE_CUBINS": "209", "LLMC_FAKE_TRACE": str(tmp_path / "trace")}
    environment = {**with_bindings(compiled(tmp_path), version), **given}
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    images = {(module.code.offset, module.code.size) for module in plan.modules if module.code is not None}
    first = plan.modules[0].kernel
    assert done.stderr.startswith(
        f"llmc: the driver refused the machine code of {len(images)} kernels and compiled their PTX; "
        f"{first}: CUDA_ERROR_NO_BINARY_FOR_GPU: the driver (CUDA 13.0) refuses this machine code\n"
    )
    calls = Counter(line.name for line in trace(tmp_path / "trace"))
    assert calls["cuModuleLoadData"] == calls["cuModuleLoadDataEx"] == len(images)
    refused = {**environment, "LLMC_FAKE_REFUSE_PTX": "222"}
    done = subprocess.run(command, env=refused, capture_output=True, text=True)
    assert done.returncode == 4
    assert (
        f"llmc: cannot compile the PTX of kernel {first} of " in done.stderr
        and "UNSUPPORTED_PTX_VERSION" in done.stderr
    )
    assert "refused by the fake driver" in done.stderr and "try: NVIDIA driver 580 or newer" in done.stderr


def test_kernels_are_loaded_whole_with_one_carveout(ran: Ran, name: str):
    lines = [
        line for line in ran.traces[name] if line.name in ("cuModuleGetFunction", "cuFuncLoad", "cuFuncSetAttribute")
    ]
    names = Counter(line.name for line in lines)
    assert names["cuFuncLoad"] == names["cuModuleGetFunction"] == len(ran.plan.modules)
    carveouts = [line.facts for line in lines if line.facts.get("attribute") == "9"]
    assert len(carveouts) == len(ran.plan.modules) and {facts["value"] for facts in carveouts} == {"100"}
