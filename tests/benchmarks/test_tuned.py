"""The last step of the call tuned, over the fake driver: an engine is built from carried kernels, and it serves."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from support.fakes.libcuda import compiled, needs_libcuda
from support.paths import ROOT

sys.path.append(str(ROOT / "benchmarks"))
import gpu_pack  # pyright: ignore[reportMissingImports]
from bringup import carry  # pyright: ignore[reportMissingImports]
from gpu_engines import EngineSpec  # pyright: ignore[reportMissingImports]

pytestmark = [*needs_libcuda, pytest.mark.slow]
SPEC = EngineSpec("pico", "fp8", 8, 512)
ITEMS = ["build", "cold start", "tokens", "throughput", "soak"]


@pytest.fixture(scope="module")
def carried(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Kernels of an engine of the bundled checkpoint, and nothing else."""
    folder = tmp_path_factory.mktemp("tuned")
    wanted = gpu_pack.Contents({carry.MANY: SPEC}, files=("probe",), kernels=carry.MANY)
    gpu_pack.make(folder / "carry", folder / "work", 90, wanted, {}, 0)
    return folder / "carry"


def rehearse(carried: Path, out: Path, **more: str) -> dict[str, Any]:
    environment = {**compiled(carried.parent, moved=1 << 16), **more}
    script = str(ROOT / "benchmarks" / "gpu_first.py")
    command = [sys.executable, script, "tuned", "--carry", str(carried), "--out", str(out), "--only", "engine"]
    subprocess.run(command, env=environment, capture_output=True, text=True, timeout=250)
    return {
        name.partition("/")[2]: one for name, one in json.loads((out / "tuned.json").read_text())["outcomes"].items()
    }


@pytest.mark.soak
def test_an_engine_is_built_from_carried_kernels_and_serves(carried: Path, tmp_path: Path):
    found = rehearse(carried, tmp_path)
    assert [*found] == ITEMS and all("result" in one for one in found.values()), [
        one.get("error") for one in found.values()
    ]
    assert found["build"]["result"]["bytes"] > 7 << 20
    assert found["cold start"]["result"]["to first token"] > 0
    assert found["tokens"]["result"]["batch 1"]["tokens_per_s"] > 0
    assert 0 <= found["throughput"]["result"]["idle_share"] < 1
    assert found["soak"]["result"] == {"skipped": "no engine is carried"}


@pytest.mark.soak
def test_a_kernel_that_ends_its_process_costs_what_runs_it(carried: Path, tmp_path: Path):
    found = rehearse(carried, tmp_path, LLMC_FAKE_EXIT="choose_kernel")
    assert [*found] == ITEMS and "result" in found["build"]
    assert all("error" in found[name] for name in ITEMS[1:4]), found
