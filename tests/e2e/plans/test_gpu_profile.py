"""An engine with a GPU's profile through every command, on a machine without that GPU."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from support.commands import Outcome
from support.engines import NARROW, NARROW_BATCH, PicoEngine, small_checkpoint
from support.plans import with_plans

from llmc.compiler.checkpoint.checkpoint import open_checkpoint
from llmc.compiler.deploy.build_cost import build_cost
from llmc.recipes.recipe import with_flags
from llmc.runtime.engine_file.file import EngineFile

Call = Callable[..., Outcome]


@pytest.mark.slow
def test_a_built_profile_is_verified_and_run_without_its_gpu(call: Call, tmp_path: Path):
    checkpoint = small_checkpoint(tmp_path / "small", max_position_embeddings=NARROW["max_position_embeddings"])
    engine = tmp_path / "e.llmc"
    assert call("build", checkpoint, "-o", engine, "--target", "cpu,sm_90", "--max-batch", NARROW_BATCH).code == 0
    verified = call("verify", engine, "--simulate", "--json")
    assert verified.code == 0, verified.err
    found = verified.json
    assert (found["ok"], found["profile"], found["simulated"]) == (True, "sm_90", True)
    assert 0 < found["max_error"] < found["tolerance"]
    assert "probe on sm_90, simulated: largest error" in call("verify", engine, "--simulate").out
    flags = ("--max-tokens", 4, "--temperature", 0, "--json")
    simulated = call("run", engine, "def", "--simulate", *flags).json
    assert len(simulated["token_ids"]) == 4
    assert simulated["token_ids"][0] == call("run", engine, "def", "--profile", "cpu", *flags).json["token_ids"][0]
    plan = call("inspect", engine, "--launches", "--json").json
    labels = {line["label"].rpartition("_")[0] for line in plan["launches"]}
    assert "model.layers.0.mlp.down_proj" in labels
    assert all(line["registers"] > 0 for line in plan["launches"])
    recipe = with_flags(None, targets=["cpu", "sm_90"])
    with EngineFile.open(engine) as file:
        cost = build_cost(open_checkpoint(checkpoint), recipe, file.manifest.profiles["sm_90"].max_context, None)
        assert cost.disk_bytes == max(one.offset + one.nbytes for one in file.tensors.values())


def test_a_real_simulation_checks_its_kernels_first(call: Call, pico_engine: PicoEngine, tmp_path: Path):
    path = with_plans(pico_engine("int8"), tmp_path / "e.llmc", 90)
    outcome = call("run", path, "x", "--simulate")
    assert outcome.code == 3
    assert "with this llmc's kernels\n  found: a plan made with others" in outcome.err
    assert outcome.err.startswith("profile sm_90 is interpreted on the CPU: its numbers, not its speed\n")
