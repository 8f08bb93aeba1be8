"""The first call to a lent GPU, rehearsed whole over the fake driver, and with a failure in each of its steps."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from support.carries.of_an_engine import ENGINE, PLAN, RIGHT, SM, TARGET, small_carry
from support.engines import NARROW, NARROW_BATCH, small_checkpoint
from support.fakes.libcuda import compiled, needs_libcuda
from support.paths import ROOT

sys.path.append(str(ROOT / "benchmarks"))
import gpu_dump  # pyright: ignore[reportMissingImports]

import llmc

pytestmark = [*needs_libcuda, pytest.mark.slow]
ILLEGAL, NO_BINARY, OUT_OF_MEMORY, UNSUPPORTED_PTX = 700, 209, 2, 222
STEPS = ("machine", "ceilings", "code", "cases", "agree", "decode", "launches")
SCRIPT = ROOT / "benchmarks" / "gpu_first.py"
PTXAS = "nvidia/cu13/bin"


@dataclass(frozen=True)
class Rehearsed:
    """What a call left: exit code, its results, and what it printed."""

    code: int
    found: dict[str, Any]
    out: str

    @property
    def outcomes(self) -> dict[str, dict[str, Any]]:
        return self.found["outcomes"]

    def of(self, step: str) -> dict[str, dict[str, Any]]:
        return {name.partition("/")[2]: one for name, one in self.outcomes.items() if name.startswith(f"{step}/")}

    def errors(self, step: str) -> dict[str, str]:
        return {name: one["error"] for name, one in self.of(step).items() if "error" in one}


@dataclass(frozen=True)
class Stage:
    """Where calls are rehearsed: folders that are carried, with everything right and with something wrong."""

    right: Path
    wrong: Path
    environment: Mapping[str, str]
    out: Path

    def command(self, carry: Path, *flags: str) -> list[str]:
        return [sys.executable, str(SCRIPT), "first", "--carry", str(carry), "--out", str(self.out), *flags]

    def rehearse(self, carry: Path, *flags: str, path: str = "", **fake: object) -> Rehearsed:
        """fake: LLMC_FAKE_* in lower case. path: a folder in front of PATH."""
        done = subprocess.run(
            self.command(carry, *flags), env=self.set(path, **fake), capture_output=True, text=True, timeout=120
        )
        assert done.stderr == ""
        return Rehearsed(done.returncode, json.loads((self.out / "first.json").read_text()), done.stdout)

    def set(self, path: str = "", **fake: object) -> dict[str, str]:
        given = {f"LLMC_FAKE_{name.upper()}": str(value) for name, value in fake.items()}
        return {**self.environment, **given, "PATH": f"{path}:{os.environ['PATH']}" if path else os.environ["PATH"]}


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path, dict[str, str]]:
    folder = tmp_path_factory.mktemp("bringup")
    checkpoint = small_checkpoint(folder / "small", tokenizer=False, num_hidden_layers=1, **NARROW)
    limits = {"targets": [TARGET], "max_batch": NARROW_BATCH, "quantize": "fp8"}
    engine = llmc.build(checkpoint, folder / "e.llmc", **limits)
    wrong = small_carry(folder / "wrong", engine, wrong=True)
    gpu_dump.record(engine, SM, wrong / "dump" / f"{ENGINE}.npz")
    return small_carry(folder / "right", engine, wrong=False), wrong, compiled(folder, moved=1 << 16)


@pytest.fixture
def stage(folders: tuple[Path, Path, dict[str, str]], tmp_path: Path) -> Stage:
    return Stage(*folders, tmp_path / "out")


@pytest.fixture
def program(tmp_path: Path) -> Callable[[str, str], str]:
    """Puts a shell script into a folder for PATH, and gives the folder."""

    def make(name: str, text: str) -> str:
        folder = tmp_path / "bin"
        folder.mkdir(exist_ok=True)
        (folder / name).write_text(f"#!/bin/sh\n{text}\n")
        (folder / name).chmod(0o755)
        return str(folder)

    return make


def test_all_of_it_runs_and_is_right(stage: Stage):
    done = stage.rehearse(stage.right)
    assert (done.code, done.found["ok"]) == (0, True), done.out
    assert (done.found["card"], done.found["driver"], done.found["rung"]) == ("Fake H100", "13.0", "cubin")
    assert done.found["carried"] == {"commit": "a test"}
    assert tuple(dict.fromkeys(name.partition("/")[0] for name in done.outcomes)) == STEPS
    assert all("result" in one and one["seconds"] >= 0 for one in done.outcomes.values())
    assert all(one["rung"] == "cubin" for step in STEPS[3:] for one in done.of(step).values())
    assert done.of("machine")["host"]["result"]["packages"]["numpy"]
    ceiling = done.of("ceilings")["read"]["result"]["bytes_per_s"]
    headline = done.of("decode")["pdl, graphs"]["result"]
    assert (headline["plan"], headline["batch"], headline["context"]) == (PLAN, 1, NARROW["max_position_embeddings"])
    assert headline["percent_of_read"] == pytest.approx(100 * headline["bytes_per_s"] / ceiling)
    assert [*done.of("decode")] == ["plain, graphs", "plain, launches", "pdl, graphs", "pdl, launches"]
    rows = [one["result"] for name, one in done.of("launches").items() if name != "sum"]
    total = done.of("launches")["sum"]["result"]
    assert sum(row["count"] for row in rows) == headline["launches"]
    assert total["ms"] == pytest.approx(sum(row["us"] * row["count"] for row in rows) / 1e3)
    assert len(done.out.splitlines()) < 60 and "8b-fp8 batch 1, pdl, graphs: " in done.out


def test_what_is_wrong_is_written_down_and_the_rest_goes_on(stage: Stage):
    done = stage.rehearse(stage.wrong)
    assert (done.code, done.found["ok"], done.errors("cases"), done.errors("agree")) == (1, False, {}, {})
    cases = {name: one["result"] for name, one in done.of("cases").items()}
    assert {name: one["ok"] for name, one in cases.items()} == {"right": True, "also right": True, "wrong": False}
    assert (cases["wrong"]["worst"], cases["wrong"]["found"], cases["wrong"]["expected"]) == ("out", 0.0, 77.0)
    agree = {name: one["result"] for name, one in done.of("agree").items()}
    assert not agree[ENGINE]["ok"] and agree[f"paths {ENGINE}"]["ok"]
    guilty = agree[f"guilty {ENGINE}"]["guilty"]
    assert (guilty["step"], guilty["kernel"]) == (0, "embed") and guilty["label"].startswith("Embedding")
    assert "wrong: error 1.0, tolerance 1e-06" in done.out and "cases        2 right, 1 wrong, 0 left out" in done.out


def test_a_program_that_fails_is_said(stage: Stage, program: Callable[[str, str], str]):
    done = stage.rehearse(stage.right, "--only", "machine", path=program("nvidia-smi", "echo no devices; exit 9"))
    assert done.of("machine")["gpu"]["result"]["nvidia-smi"] == "exit 9: no devices\n"


def test_without_a_context_every_item_says_why(stage: Stage):
    done = stage.rehearse(stage.right, fail="cuDevicePrimaryCtxRetain:0:46")
    assert done.code == 1
    assert done.errors("ceilings")["context"].startswith("cannot create a context on GPU 0\n  found: CUDA_ERROR_")
    assert {*done.errors("cases")} == {*RIGHT} and len(done.errors("decode")) == 4
    assert not done.errors("machine")


@pytest.mark.soak
def test_a_broken_context_in_a_ceiling_costs_only_that(stage: Stage):
    done = stage.rehearse(stage.right, "--only", "ceilings", sticky=f"probe_read:{ILLEGAL}")
    assert {*done.errors("ceilings")} == {"read"} and done.of("ceilings")["read"]["sticky"]
    assert done.of("ceilings")["graph node, pdl"]["result"]["us"] > 0


@pytest.mark.soak
def test_refused_machine_code_is_compiled_from_ptx(stage: Stage):
    done = stage.rehearse(stage.right, refuse_cubins=NO_BINARY)
    assert (done.code, done.found["rung"]) == (0, "ptx"), done.out
    assert "CUDA_ERROR_NO_BINARY_FOR_GPU" in done.of("ceilings")["ladder"]["result"]["refused"]["cubin"]
    assert {one["rung"] for one in done.of("decode").values()} == {"ptx"}
    assert "the driver refused the machine code of" in done.of("decode")["pdl, graphs"]["result"]["notes"][0]


@pytest.mark.soak
def test_refused_ptx_is_assembled_here(stage: Stage):
    folder = next(path for entry in sys.path if (path := Path(entry, PTXAS)).is_dir())
    first = f"cuModuleLoadData:1:{NO_BINARY}"  # the cubin of the ladder; what is assembled from then on is taken
    done = stage.rehearse(stage.right, path=str(folder), fail=first, refuse_ptx=UNSUPPORTED_PTX)
    assert done.found["rung"] == "assembled"
    assert {*done.found["refused"]} == {"cubin", "ptx"}
    assert "refused by the fake driver" in done.found["refused"]["ptx"]
    assert len(done.of("decode")) == 4 and not done.errors("decode") and not done.errors("agree"), done.out


@pytest.mark.soak
def test_where_nothing_carried_loads_a_kernel_of_this_machine_is_tried(
    stage: Stage, program: Callable[[str, str], str]
):
    assembler = program("ptxas", "echo unsupported version; exit 1")  # the next one that is tried is Triton's
    first = ",".join(f"cuModuleLoadData:{call}:{NO_BINARY}" for call in (1, 2))
    done = stage.rehearse(stage.right, path=assembler, fail=first, refuse_ptx=UNSUPPORTED_PTX)
    assert done.found["rung"] == "triton", done.found["refused"]
    assert "CUDA_ERROR_NO_BINARY_FOR_GPU" in done.found["refused"]["assembled"]
    assert {*done.errors("cases")} == {*RIGHT}
    assert "only the rung 'triton' works" in done.errors("cases")["right"]


@pytest.mark.soak
def test_where_nothing_loads_all_reasons_are_said(stage: Stage):
    done = stage.rehearse(stage.right, "--only", "ceilings", refuse_cubins=NO_BINARY, refuse_ptx=UNSUPPORTED_PTX)
    assert (done.code, done.found["rung"]) == (1, "none")
    assert {*done.found["refused"]} == {"cubin", "ptx", "assembled", "triton"}


@pytest.mark.soak
def test_a_case_that_breaks_the_context_is_checked_and_the_others_run(stage: Stage, program: Callable[[str, str], str]):
    checker = program("compute-sanitizer", 'shift 2; "$@"; echo "ERROR SUMMARY: 1 error, exit $?"')
    done = stage.rehearse(stage.wrong, path=checker, sticky=f"wrong:{ILLEGAL}")
    broken = done.of("cases")["wrong"]
    assert (broken["cuda"], broken["sticky"]) == ("ILLEGAL_ADDRESS", True)
    said = done.of("cases")["memcheck wrong"]["result"]["said"]
    assert "ERROR SUMMARY: 1 error, exit 1" in said and "CUDA_ERROR_ILLEGAL_ADDRESS" in said
    assert all(done.of("cases")[name]["result"]["ok"] for name in RIGHT)
    assert not done.errors("agree") and not done.errors("decode")


@pytest.mark.soak
@pytest.mark.parametrize(
    ("fault", "said"), [("exit", "the process ended, signal SIGABRT"), ("hang", "hangs: killed after")]
)
def test_a_case_that_ends_or_stops_its_process_costs_only_itself(stage: Stage, fault: str, said: str):
    done = stage.rehearse(stage.wrong, "--only", "cases", **{fault: "wrong"})
    assert done.errors("cases")["wrong"].startswith(said)
    assert all(done.of("cases")[name]["result"]["ok"] for name in RIGHT) and done.code == 1


@pytest.mark.soak
def test_an_engine_whose_kernel_fails_is_still_looked_at_launch_by_launch(stage: Stage):
    done = stage.rehearse(stage.wrong, "--only", "agree", sticky=f"attention_decode:{ILLEGAL}")
    assert {*done.errors("agree")} == {ENGINE, f"paths {ENGINE}"}
    assert all(one["sticky"] for name, one in done.of("agree").items() if name in done.errors("agree"))
    assert done.of("agree")[f"guilty {ENGINE}"]["result"]["guilty"]["kernel"] == "embed"


def test_a_launch_that_fails_is_missing_in_the_sum(stage: Stage):
    done = stage.rehearse(stage.right, "--only", "launches", sticky=f"attention_decode:{ILLEGAL}")
    (failed,) = done.errors("launches")
    assert "attention_decode" in failed
    total = done.of("launches")["sum"]["result"]
    assert (total["missing"], total["rows"]) == (1, len(done.of("launches")) - 2)


def test_too_little_memory_is_one_items_error(stage: Stage):
    done = stage.rehearse(stage.right, "--only", "decode", memory=(512 << 20) + (64 << 10))
    assert len(done.errors("decode")) == 4
    assert all("of GPU memory" in error for error in done.errors("decode").values())


def test_memory_that_runs_out_while_loading_leaves_the_next_item_whole(stage: Stage):
    done = stage.rehearse(stage.right, "--only", "decode", fail=f"cuMemAlloc:1:{OUT_OF_MEMORY}")
    assert {*done.errors("decode")} == {"plain, graphs"} and done.of("decode")["plain, graphs"]["sticky"] is False
    assert done.of("decode")["plain, graphs"]["cuda"] == "OUT_OF_MEMORY"


def test_what_no_longer_fits_is_left_out_by_name(stage: Stage):
    done = stage.rehearse(stage.right, "--seconds", "3.3")
    left = {name for name, one in done.outcomes.items() if one.get("left out") == "the time of the call is over"}
    assert {"cases/right", "decode/pdl, graphs", "launches/sum"} <= left and done.code == 1
    assert all("left out" in one or "result" in one for one in done.outcomes.values())


@pytest.mark.soak
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_a_call_that_is_killed_leaves_what_it_found(stage: Stage, number: signal.Signals):
    process = subprocess.Popen(stage.command(stage.wrong), env=stage.set(hang="wrong"), stdout=subprocess.DEVNULL)
    lines, begun = stage.out / "first.jsonl", '"begin": "cases/wrong"'
    until = time.monotonic() + 60
    while not (lines.exists() and begun in lines.read_text()) and time.monotonic() < until:
        time.sleep(0.05)
    process.send_signal(number)
    process.wait(20)
    found = json.loads((stage.out / "first.json").read_text())["outcomes"]
    assert all(found[f"cases/{name}"].get("result", {}).get("ok") for name in RIGHT), found
    if number == signal.SIGTERM:
        assert found["cases/wrong"] == {"left out": "the call was ended from outside"}
        assert found["decode/pdl, graphs"] == {"left out": "the call was ended from outside"}
    children = subprocess.run(["pgrep", "-f", f"{SCRIPT} first .*{stage.out}"], capture_output=True, text=True).stdout
    assert children == ""


def test_a_dry_run_needs_no_gpu_and_writes_nothing(stage: Stage):
    done = subprocess.run(stage.command(stage.right, "--dry-run"), capture_output=True, text=True)
    assert done.returncode == 0 and not stage.out.exists(), done.stderr
    assert f"carried for {TARGET}" in done.stdout
    assert "  decode: at most 25 s, 4 items: plain, graphs, plain, launches" in done.stdout
    refused = subprocess.run(stage.command(stage.right, "--only", "x"), capture_output=True, text=True)
    assert refused.returncode == 2 and f"--only x: one of {', '.join(STEPS)}" in refused.stderr
