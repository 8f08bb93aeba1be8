"""FP8 activations: large steps of a GPU profile compute what the oracle of its own graph says, small ones more."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from support.commands import Call
from support.engines import NARROW, NARROW_BATCH, quantized_logits, relative, small_checkpoint, some_ids

import llmc
from llmc.compiler.checkpoint.account import open_source
from llmc.compiler.oracle.oracle import Oracle
from llmc.compiler.oracle.probe import inputs_for
from llmc.compiler.pipeline import lower
from llmc.compiler.targets.simulate.device import SimulatedDevice
from llmc.recipes.recipe import with_flags
from llmc.runtime.engine_file.file import EngineFile
from llmc.runtime.plan.copies import in_steps
from llmc.runtime.plan.executor import PagedExecutor
from llmc.runtime.plan.plan import Plan
from llmc.runtime.scheduling.executor import ScheduledSequence

BOUND = 3e-2
"""Largest max|a-b|/max|b| of logits: activations are bfloat16 between operators."""
VOCAB = NARROW["vocab_size"]


@pytest.fixture
def call(capsys: pytest.CaptureFixture[str]) -> Call:
    return Call(capsys)


@pytest.fixture(scope="module", params=["fp8", pytest.param("nvfp4", marks=pytest.mark.soak)])
def built(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path, str]:
    """Checkpoint, engine and weight format."""
    folder = tmp_path_factory.mktemp("fp8")
    checkpoint = small_checkpoint(folder / "c", tokenizer=False, num_hidden_layers=1, **NARROW)
    path = llmc.build(
        checkpoint,
        folder / "e.llmc",
        targets=["cpu", "sm_90"],
        max_batch=NARROW_BATCH,
        quantize=request.param,
        activations="fp8",
    )
    return checkpoint, path, request.param


def oracle_of_profile(
    checkpoint: Path, path: Path, quantize: str, ids: list[int], activations: str = "fp8", target: str = "sm_90"
) -> np.ndarray:
    """Logits [T,V] of the profile's own graph, where activations are rounded."""
    source = open_source(checkpoint)
    recipe = with_flags(None, quantize=quantize, activations=activations, targets=[target])
    graph = lower(source, recipe, 256)[1][target]
    with EngineFile.open(path) as engine:

        def read(name: str, start: int, stop: int) -> np.ndarray:
            rows = engine.tensor(name)
            return rows[start:] if stop < 0 and rows.shape else rows[start:stop] if rows.shape else rows

        return Oracle(read).run(graph, inputs_for(source.config.decoder, ids, rows=len(ids)))["logits"]


def without_copies(engine: EngineFile, profile: str, plan: Plan, slots: int) -> SimulatedDevice:
    return SimulatedDevice(engine, profile, in_steps(plan), slots)


def simulated_logits(
    path: Path,
    ids: list[int],
    steps: tuple[int, ...],
    profile: str = "sm_90",
    device: Callable[..., SimulatedDevice] = SimulatedDevice,
) -> np.ndarray:
    executor = PagedExecutor(EngineFile.open(path), profile, device, max_batch=2)
    try:
        rows, start = [], 0
        for count in steps:
            scheduled = ScheduledSequence(
                0, tuple(ids[start : start + count]), start, ((0, 1),), None, len(ids), rows="all"
            )
            (output,) = executor.collect(executor.submit((scheduled,)))
            rows.append(output.logits)
            start += count
        return np.concatenate(rows)
    finally:
        executor.close()


def test_large_steps_round_their_activations_and_small_ones_do_not(built: tuple[Path, Path, str]):
    checkpoint, path, quantize = built
    ids = [token % VOCAB for token in some_ids(70, 3)]
    exact = quantized_logits(path, quantize, ids, checkpoint)
    rounded = oracle_of_profile(checkpoint, path, quantize, ids)
    large, small = simulated_logits(path, ids, (70,)), simulated_logits(path, ids, (40, 30))
    # One rounding to E4M3 decides the next: after four linears two right answers are as far apart as either is from
    # the exact one. What is asked for is that errors have the size of those of the profile's own graph.
    error = deviation(rounded, exact)
    assert 0.01 < error < 0.1
    assert 0.7 * error < deviation(large, exact) < 1.3 * (error if quantize == "fp8" else 2**0.5 * error)
    assert deviation(large, rounded) < 1.3 * (error if quantize == "fp8" else 2**0.5 * error)
    assert relative(small, exact) < BOUND
    if quantize == "nvfp4":
        np.testing.assert_array_equal(simulated_logits(path, ids, (70,), device=without_copies), large)


def deviation(found: np.ndarray, expected: np.ndarray) -> float:
    """Root mean square of the difference, in that of what is expected."""
    return float(np.sqrt(np.square(found - expected).mean() / np.square(expected).mean()))


def test_only_large_programs_quantize_their_activations(built: tuple[Path, Path, str]):
    _, path, quantize = built
    with EngineFile.open(path) as engine:
        plan = Plan.from_json(engine.section(engine.manifest.profiles["sm_90"].graph), what="plan")
    for program in plan.programs:
        kernels = [plan.modules[launch.module].kernel for launch in program.kernels]
        count = kernels.count("linear_fp8")
        assert count == (4 if program.tokens > 64 else 0)
        # only attention's output has a launch of its own: norms and gated activations write E4M3 themselves
        fused = {name: kernels.count(name) for name in ("rms_norm_fp8", "gated_fp8", "quantize_rows")}
        assert fused == ({"rms_norm_fp8": 2, "gated_fp8": 1, "quantize_rows": 1} if count else dict.fromkeys(fused, 0))
        assert kernels.count("gated") == 0  # in small programs the linear's epilogue
        assert kernels.count("expand_fp8") == 0
    once = [] if plan.setup is None else [plan.modules[launch.module].kernel for launch in plan.setup.kernels]
    assert once == ["expand_fp8"] * (4 if quantize == "nvfp4" else 0)


def test_a_cpu_profile_keeps_its_activations(built: tuple[Path, Path, str], call: Call):
    code, said = call("verify", built[1], "--profile", "cpu")
    assert code == 0 and "probe on cpu" in said


def test_a_chip_without_fp8_tensor_cores_refuses(built: tuple[Path, Path, str], call: Call, tmp_path: Path):
    flags = ("--target", "sm_80", "--quantize", "fp8", "--activations", "fp8")
    code, said = call("build", built[0], "-o", tmp_path / "e.llmc", *flags)
    assert code == 3
    assert "activations fp8 on sm_80" in said and "a chip without FP8" in said
    assert not list(tmp_path.iterdir())
