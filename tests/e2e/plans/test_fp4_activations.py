"""4-bit activations: large steps of a Blackwell profile compute what its graph says, small ones are more exact."""

from __future__ import annotations

from pathlib import Path

import pytest
from support.commands import Call
from support.engines import NARROW, NARROW_BATCH, quantized_logits, relative, small_checkpoint, some_ids

import llmc
from llmc.runtime.engine_file.file import EngineFile
from llmc.runtime.errors import RecipeError
from llmc.runtime.plan.plan import Plan

from .test_fp8_activations import BOUND, VOCAB, deviation, oracle_of_profile, simulated_logits

FUSED = ("linear_fp4", "rms_norm_fp4", "attention_prefill_fp4", "quantize_fp4")


@pytest.fixture
def call(capsys: pytest.CaptureFixture[str]) -> Call:
    return Call(capsys)


@pytest.fixture(scope="module", params=["nvfp4", pytest.param("mxfp4", marks=pytest.mark.soak)])
def built(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path, str]:
    """Checkpoint, engine and the format of weights and activations."""
    folder, format = tmp_path_factory.mktemp("fp4"), request.param
    checkpoint = small_checkpoint(folder / "c", tokenizer=False, num_hidden_layers=2, **NARROW)
    path = llmc.build(
        checkpoint,
        folder / "e.llmc",
        targets=["cpu", "sm_100"],
        max_batch=NARROW_BATCH,
        quantize=format,
        activations=format,
    )
    return checkpoint, path, format


def test_large_steps_round_their_activations_and_small_ones_do_not(built: tuple[Path, Path, str]) -> None:
    checkpoint, path, format = built
    ids = [token % VOCAB for token in some_ids(70, 3)]
    exact = quantized_logits(path, format, ids, checkpoint)
    rounded = oracle_of_profile(checkpoint, path, format, ids, activations=format, target="sm_100")
    large = simulated_logits(path, ids, (70,), profile="sm_100")
    small = simulated_logits(path, ids, (40, 30), profile="sm_100")
    # A code that falls on the other side decides the next: two right answers are as far apart as either is from the
    # exact one. Errors have the size of those of the profile's own graph.
    error = deviation(rounded, exact)
    assert 0.05 < error < 0.6
    assert 0.7 * error < deviation(large, exact) < 1.3 * error
    assert deviation(large, rounded) < 1.3 * error
    assert relative(small, exact) < BOUND


def test_codes_are_written_by_what_computes_them(built: tuple[Path, Path, str]) -> None:
    _, path, format = built
    with EngineFile.open(path) as engine:
        plan = Plan.from_json(engine.section(engine.manifest.profiles["sm_100"].graph), what="plan")
    for program in plan.programs:
        kernels = [plan.modules[launch.module].kernel for launch in program.kernels]
        large = program.tokens > 64
        # Of the last layer only some rows of attention's output are wanted, so their codes have a launch of their own;
        # and those of heads of 16 columns, which are no whole groups of mxfp4.
        own = 1 if format == "nvfp4" else 2
        expected = {"linear_fp4": 8, "rms_norm_fp4": 4, "attention_prefill_fp4": 2 - own, "quantize_fp4": own}
        assert {name: kernels.count(name) for name in FUSED} == (expected if large else dict.fromkeys(FUSED, 0))
        assert not {"gated", "expand_fp8", "linear_fp8"} & {*kernels}
        assert kernels.count("linear_large" if large else "linear_small") == (1 if large else 9), (
            "the head is not touched"
        )


def test_a_cpu_profile_keeps_its_activations(built: tuple[Path, Path, str], call: Call) -> None:
    code, said = call("verify", built[1], "--profile", "cpu")
    assert code == 0 and "probe on cpu" in said


def test_the_probe_passes_on_the_simulated_device(built: tuple[Path, Path, str], call: Call) -> None:
    code, said = call("verify", built[1], "--profile", "sm_100", "--simulate")
    assert code == 0 and "probe on sm_100, simulated" in said


@pytest.mark.parametrize("target", ["sm_90", "sm_89"])
def test_a_chip_without_fp4_tensor_cores_refuses(
    built: tuple[Path, Path, str], call: Call, tmp_path: Path, target: str
) -> None:
    flags = ("--target", target, "--quantize", built[2], "--activations", built[2])
    code, said = call("build", built[0], "-o", tmp_path / "e.llmc", *flags)
    assert code == 3
    assert f"activations {built[2]} on {target}" in said and "a chip without FP4" in said
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("quantize", ["int4", "fp8", "none", "mxfp4"])
def test_weights_in_other_formats_are_refused(built: tuple[Path, Path, str], tmp_path: Path, quantize: str) -> None:
    with pytest.raises(RecipeError, match="cannot use activations nvfp4 beside weights in other formats"):
        llmc.build(built[0], tmp_path / "e.llmc", targets=["sm_100"], quantize=quantize, activations="nvfp4")
