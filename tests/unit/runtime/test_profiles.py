"""Which profile runs: the GPU's that fits, else the cpu's, and the reason for every other; or one that is simulated."""

from __future__ import annotations

import sys
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest
from support.commands import Outcome
from support.engines import PicoEngine
from support.fakes.toy_ranks import shards
from support.plans import with_plans
from support.toy_gpu import toy_ranks

from llmc.runtime import environment, profiles
from llmc.runtime.chips import runs_on
from llmc.runtime.cuda.exchange import nccl
from llmc.runtime.engine_file.file import EngineFile
from llmc.runtime.errors import EngineError, RecipeError, ResourceError
from llmc.runtime.load import load
from llmc.runtime.plan.plan import Plan
from llmc.runtime.probe import replay
from llmc.runtime.profiles import choose, choose_gpu_profile, fits, named

Call = Callable[..., Outcome]


@dataclass(frozen=True)
class Gpu:
    name: str
    sm: int
    memory: int = 80 << 30


@pytest.fixture(scope="module")
def path(pico_engine: PicoEngine, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Profiles cpu, sm_80, sm_89 and sm_90."""
    return with_plans(pico_engine("int8"), tmp_path_factory.mktemp("profiles") / "e.llmc", 80, 89, 90)


@pytest.fixture
def engine(path: Path):
    with EngineFile.open(path) as opened:
        yield opened


def here(monkeypatch: pytest.MonkeyPatch, *gpus: Gpu, bindings: bool = True) -> None:
    monkeypatch.setattr(profiles, "gpus", lambda: gpus)
    monkeypatch.setattr(profiles, "has_bindings", lambda: bindings)


@pytest.mark.parametrize(
    ("sm", "chips"),
    [
        (80, {80, 86, 89}),
        (86, {86, 89}),
        (87, {87}),
        (89, {89}),
        (90, {90}),
        (100, {100, 103}),
        (120, {120, 121}),
    ],
)
def test_cubins_run_on_equal_chips_and_some_on_later_ones_of_their_major(sm: int, chips: set[int]):
    known = (70, 75, 80, 86, 87, 89, 90, 100, 103, 110, 120, 121)
    assert {chip for chip in known if runs_on(sm, chip)} == chips


def test_without_a_gpu_the_cpu_runs(engine: EngineFile, monkeypatch: pytest.MonkeyPatch):
    here(monkeypatch)
    missing = dict.fromkeys(("sm_80", "sm_89", "sm_90"), "no NVIDIA GPU here")
    assert choose(engine) == ("cpu", {"cpu": "", **missing})


def test_the_profile_of_this_gpu_comes_before_the_cpu(engine: EngineFile, monkeypatch: pytest.MonkeyPatch):
    here(monkeypatch, Gpu("NVIDIA H200", 90))
    name, reasons = choose(engine)
    assert name == "sm_90"
    assert reasons["sm_80"] == "needs compute capability 8.0, this GPU (NVIDIA H200) has 9.0"
    assert reasons["cpu"] == reasons["sm_90"] == ""
    assert choose(engine, "cpu")[0] == "cpu"


def test_the_nearest_of_several_that_fit(engine: EngineFile, monkeypatch: pytest.MonkeyPatch):
    here(monkeypatch, Gpu("NVIDIA L4", 89))
    assert choose(engine)[0] == "sm_89"
    here(monkeypatch, Gpu("NVIDIA A10", 86))
    name, reasons = choose(engine)
    assert name == "sm_80"
    assert reasons["sm_89"] == "needs compute capability 8.9, this GPU (NVIDIA A10) has 8.6"


def test_blocks_too_large_for_a_gpu_of_the_major_do_not_fit_it(engine: EngineFile, monkeypatch: pytest.MonkeyPatch):
    profile = engine.manifest.profiles["sm_80"]
    for shared, reason in (
        (99 << 10, ""),
        ((99 << 10) + 1, "needs 101377 bytes of shared memory a block, this GPU (NVIDIA A10) has 101376"),
    ):
        monkeypatch.setitem(engine.manifest.profiles, "sm_80", replace(profile, needs={"sm": 80, "shared": shared}))  # pyright: ignore[reportArgumentType]
        here(monkeypatch, Gpu("NVIDIA A10", 86))
        assert fits(engine)["sm_80"] == reason
        here(monkeypatch, Gpu("NVIDIA A10", 86), Gpu("NVIDIA A100", 80))
        assert fits(engine)["sm_80"] == ""


@pytest.fixture(scope="module")
def split(pico_engine: PicoEngine) -> Path:
    return pico_engine("int4", parallel="tp1,tp2,pp2,tp2-pp2")


def test_one_rank_comes_before_several_and_few_before_many(split: Path, monkeypatch: pytest.MonkeyPatch):
    here(monkeypatch)
    with EngineFile.open(split) as engine:
        assert choose(engine) == ("cpu", dict.fromkeys(("cpu", "cpu-tp2", "cpu-pp2", "cpu-tp2-pp2"), ""))
        assert choose(engine, "CPU-TP2-PP2")[0] == "cpu-tp2-pp2"
        for name, then in (("cpu", "cpu-tp2"), ("cpu-tp2", "cpu-pp2"), ("cpu-pp2", "cpu-tp2-pp2")):
            monkeypatch.delitem(engine.manifest.profiles, name)  # pyright: ignore[reportArgumentType]
            assert choose(engine)[0] == then


def test_where_several_ranks_do_not_fit(split: Path, engine: EngineFile, monkeypatch: pytest.MonkeyPatch):
    two = replace(engine.manifest.profiles["sm_90"], split="tp2", ranks=("a", "b"))
    monkeypatch.setitem(engine.manifest.profiles, "sm_90-tp2", two)  # pyright: ignore[reportArgumentType]
    here(monkeypatch)
    assert fits(engine)["sm_90-tp2"] == "no NVIDIA GPU here"
    here(monkeypatch, Gpu("NVIDIA H200", 90))
    assert choose(engine)[0] == "sm_90"
    assert fits(engine)["sm_90-tp2"] == "needs 2 GPUs, one for each rank, of which this machine has 1"
    monkeypatch.delattr("os.memfd_create")
    with EngineFile.open(split) as opened:
        assert [name for name, reason in fits(opened).items() if reason == "its ranks need Linux"] == [
            "cpu-pp2",
            "cpu-tp2",
            "cpu-tp2-pp2",
        ]


def test_a_target_without_an_executor_fits_no_machine(engine: EngineFile, monkeypatch: pytest.MonkeyPatch):
    """Built by a newer llmc, or by this one for a target that nothing runs, such as null."""
    profile = engine.manifest.profiles["sm_80"]
    monkeypatch.setitem(engine.manifest.profiles, "sm_80", replace(profile, target="null"))
    here(monkeypatch, Gpu("NVIDIA A100", 80))
    assert fits(engine)["sm_80"] == "this llmc does not run target 'null'"
    assert choose(engine)[0] == "cpu"
    with pytest.raises(ResourceError, match=r"cannot run profile 'sm_80' of .*\n  found: this llmc does not run"):
        choose(engine, "sm_80")


def test_every_gpu_is_named_that_does_not_fit(engine: EngineFile, monkeypatch: pytest.MonkeyPatch):
    here(monkeypatch, Gpu("A", 75), Gpu("A", 75), Gpu("B", 120))
    assert fits(engine)["sm_90"] == "needs compute capability 9.0, this GPU (A) has 7.5, this GPU (B) has 12.0"


def test_without_the_bindings_a_gpu_is_of_no_use(engine: EngineFile, monkeypatch: pytest.MonkeyPatch):
    here(monkeypatch, Gpu("NVIDIA H200", 90), bindings=False)
    assert fits(engine)["sm_90"] == "cuda-bindings is not installed: pip install '.[cuda]' in a checkout of llmc"
    assert choose(engine)[0] == "cpu"
    assert fits(engine, (Gpu("h100", 90),))["sm_90"] == ""  # nothing of this machine matters there


def test_bindings_are_looked_for_where_they_are_installed(monkeypatch: pytest.MonkeyPatch):
    asked: list[str] = []
    monkeypatch.setattr(profiles, "find_spec", lambda name: asked.append(name))
    assert (profiles.has_bindings(), asked) == (False, ["cuda.bindings"])
    monkeypatch.setattr(profiles, "find_spec", lambda name: object())
    assert profiles.has_bindings()

    def none(name: str) -> None:
        raise ModuleNotFoundError("No module named 'cuda'")

    monkeypatch.setattr(profiles, "find_spec", none)
    assert not profiles.has_bindings()


@pytest.mark.parametrize(
    ("name", "kind", "message"),
    [
        ("sm_9", EngineError, "\n  found: profiles cpu, sm_80, sm_89, sm_90"),
        (
            "sm_90",
            ResourceError,
            "on this machine\n  found: needs compute capability 9.0, this GPU (NVIDIA A10) has 8.6",
        ),
    ],
)
def test_a_profile_that_cannot_run_is_refused(
    engine: EngineFile, monkeypatch: pytest.MonkeyPatch, name: str, kind: type[Exception], message: str
):
    here(monkeypatch, Gpu("NVIDIA A10", 86))
    with pytest.raises(kind) as caught:
        choose(engine, name)
    assert message in str(caught.value)


def test_a_simulated_profile_needs_no_gpu(engine: EngineFile, monkeypatch: pytest.MonkeyPatch):
    here(monkeypatch)
    assert choose(engine, simulated=True) == ("sm_90", {})
    assert choose(engine, "sm_80", simulated=True) == ("sm_80", {})
    with pytest.raises(
        RecipeError, match=r"expected profile 'cpu' as one of a GPU in .*\n  found: target cpu\n  try: --profile sm_90"
    ):
        choose(engine, "cpu", simulated=True)
    with pytest.raises(
        EngineError, match=r"cannot find profile 'cpi' in .*\n  found: profiles cpu, sm_80, sm_89, sm_90$"
    ):
        choose_gpu_profile(engine, "cpi")


@pytest.mark.parametrize(
    ("asked", "found"),
    [
        *(("SM_90", "sm_90"), ("h100", "sm_90"), ("NVIDIA H100 NVL", "sm_90"), ("rtx 4080", "sm_89"), ("90", "sm_90")),
        *(("A10", "sm_80"), ("CPU", "cpu"), ("native", None), (None, None)),
    ],
)
def test_a_gpu_s_name_is_the_best_profile_for_it(engine: EngineFile, asked: str | None, found: str | None):
    assert named(engine, asked) == found


@pytest.mark.parametrize(
    ("asked", "fix"),
    [
        ("b200", "\n  try: llmc build --target cpu,sm_80,sm_89,sm_90,sm_100"),
        *(("gpu", ""), ("h10", ""), ("v100", ""), ("sm_91", "")),
    ],
)
def test_no_profile_of_another_generation_is_suggested(engine: EngineFile, asked: str, fix: str):
    with pytest.raises(EngineError) as refused:
        named(engine, asked)
    said = f"cannot find profile {asked!r} in {engine.path}\n  found: profiles cpu, sm_80, sm_89, sm_90{fix}"
    assert str(refused.value) == said


def test_a_profile_that_the_machine_asks_for_is_blamed_on_its_variable(
    engine: EngineFile, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("LLMC_PROFILE", "gpu")
    with pytest.raises(EngineError, match="found: profiles cpu, sm_80, sm_89, sm_90; LLMC_PROFILE is set"):
        named(engine, "gpu")


class Fake:
    """A device that answers every step with the same logits."""

    def __init__(self, engine: EngineFile, profile: str, plan: Plan, slots: int) -> None:
        self.made = profile, plan.sm, slots
        self.blocks: Mapping[str, int] = {cache.size: slots * cache.blocks for cache in plan.caches}
        self.notes = ()
        self._vocab = engine.manifest.model.vocab_size
        made.append(self)

    def run(
        self, program: int, sizes: Mapping[str, int], inputs: Mapping[str, np.ndarray], wanted: Collection[str]
    ) -> int:
        return sizes["rows"]

    def read(self, handle: int) -> Mapping[str, np.ndarray]:
        logits = np.tile(np.arange(self._vocab, dtype=np.float32), (handle, 1))
        return {"logits": logits, "sampled": np.full(handle, 7, np.int32), "status": np.zeros(handle, np.int32)}

    def close(self) -> None:
        pass


made: list[Fake] = []


@pytest.fixture(autouse=True)
def _forget_devices():
    made.clear()


def test_a_device_that_is_given_runs_the_plan(path: Path, monkeypatch: pytest.MonkeyPatch):
    here(monkeypatch)
    with load(path, max_batch=2, make_device=Fake) as loaded:
        assert loaded.profile == "sm_90"
        assert loaded.generate([1, 2, 3], max_tokens=4, ignore_eos=True).token_ids == [7, 7, 7, 7]
        assert loaded.logits([1, 2]).argmax(axis=1).tolist() == [4095, 4095]
    assert [device.made for device in made] == [("sm_90", 90, 2)]
    report = replay(path, "sm_80", make_device=Fake)
    assert (report.ok, report.positions, made[1].made) == (False, 8, ("sm_80", 80, 1))


def test_threads_for_a_gpu_s_profile_are_said_to_change_nothing(
    call: Call, path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr("llmc.cli.common.simulate._Interpreter", lambda: Fake)
    said = "threads 3 changes nothing: profile sm_90 runs on a GPU"
    with load(path, threads=3, make_device=Fake) as loaded:
        assert loaded.notes == (said,)
    command = ("run", path, "x", "--simulate", "--max-tokens", 1)
    assert f"llmc: {said}\n" in call(*command, "--threads", 3).err
    monkeypatch.setenv("LLMC_THREADS", "3")  # set for all commands of a machine at once
    assert "nothing" not in call(*command).err
    with load(path, threads=3, make_device=Fake) as loaded:
        assert loaded.notes == ()


def test_simulate_takes_the_place_of_the_gpu(call: Call, path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("llmc.cli.common.simulate._Interpreter", lambda: Fake)
    found = call("run", path, "x", "--simulate", "--max-tokens", 3, "--json").json
    assert (found["token_ids"], made[0].made) == ([7, 7, 7], ("sm_90", 90, 4))
    assert call("run", path, "x", "--simulate", "--profile", "sm_89", "--max-tokens", 1).code == 0
    assert made[1].made[0] == "sm_89"
    outcome = call("verify", path, "--simulate", "--profile", "sm_80")
    assert (outcome.code, made[2].made) == (1, ("sm_80", 80, 1))  # such logits are not the probe's
    assert "to compute what it computed when it was built" in outcome.err


@pytest.mark.parametrize("command", [["run", "x"], ["verify"]])
def test_only_a_gpus_profile_is_simulated(call: Call, path: Path, pico_engine: PicoEngine, command: list[str]):
    name, *rest = command
    outcome = call(name, path, *rest, "--simulate", "--profile", "cpu")
    assert outcome.code == 2
    assert "expected profile 'cpu' as one of a GPU in " in outcome.err
    assert "\n  found: target cpu\n  try: --profile sm_90" in outcome.err
    outcome = call(name, pico_engine("int8"), *rest, "--simulate")
    assert outcome.code == 2
    assert "expected a profile of a GPU in " in outcome.err
    assert "\n  found: profiles cpu\n  try: llmc build --target sm_90" in outcome.err


@pytest.mark.parametrize("module", ["torch", "triton"])
def test_simulate_needs_its_extra(call: Call, path: Path, monkeypatch: pytest.MonkeyPatch, module: str):
    monkeypatch.setitem(sys.modules, module, None)
    outcome = call("run", path, "x", "--simulate")
    assert outcome.code == 4
    assert outcome.err == (
        f"llmc: cannot use --simulate without the extra 'cuda-build'\n  found: not installed: {module}\n"
        "  try: pip install '.[cuda-build]' in a checkout of llmc\n"
    )


def test_run_says_once_that_a_gpu_is_left_alone(
    call: Call, path: Path, pico_engine: PicoEngine, monkeypatch: pytest.MonkeyPatch
):
    here(monkeypatch, Gpu("NVIDIA V100", 70))
    outcome = call("run", path, "x", "--max-tokens", 2)
    assert outcome.code == 0
    assert outcome.err.startswith(
        f"llmc: no profile of {path} uses the GPU of this machine (NVIDIA V100)\n"
        "  sm_80: needs compute capability 8.0, this GPU (NVIDIA V100) has 7.0\n"
    )
    assert outcome.err.count("this machine") == 1
    assert "this machine" not in call("run", path, "x", "--max-tokens", 2, "--profile", "cpu").err
    here(monkeypatch, Gpu("NVIDIA A10", 86))
    assert call("run", pico_engine("int8"), "x", "--max-tokens", 2).err.startswith(
        f"llmc: no profile of {pico_engine('int8')} uses the GPU of this machine (NVIDIA A10)\n"
        "  try: llmc build --target cpu,sm_86\n"
    )
    here(monkeypatch)
    assert "this machine" not in call("run", path, "x", "--max-tokens", 2).err


def test_doctor_shows_the_gpus_memory(call: Call, path: Path, monkeypatch: pytest.MonkeyPatch):
    here(monkeypatch, Gpu("NVIDIA H200", 90, 3 << 30))
    found = call("doctor", path, "--json").json["engine"]
    assert (found["profile"], found["fit"]) == ("sm_90", ["cpu", "sm_90"])
    assert (found["memory"]["sm_90"]["gpu"], found["memory"]["sm_90"]["usable_bytes"]) == ("NVIDIA H200", 2 << 30)
    assert "for" not in found
    assert "    memory of NVIDIA H200: 3.00 GiB, 2.00 GiB of it for: " in call("doctor", path).out


@pytest.fixture(scope="module")
def two(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A profile sm_90-tp2 alone."""
    return toy_ranks(tmp_path_factory.mktemp("split") / "e.llmc", "tp2", shards())


def test_ranks_need_a_gpu_each_unless_a_launcher_has_others(two: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(profiles, "nccl_problem", lambda: "")
    for name in environment.LAUNCHERS:
        monkeypatch.delenv(name, raising=False)
    gpu, other = Gpu("NVIDIA H200", 90), Gpu("NVIDIA L4", 89)
    with EngineFile.open(two) as engine:
        assert fits(engine, (gpu,)) == {"sm_90-tp2": ""}
        here(monkeypatch, gpu, other)
        reason = "needs 2 GPUs, one for each rank, of which this machine has 1"
        with pytest.raises(ResourceError, match=rf"cannot run profile 'sm_90-tp2' of .*\n  found: {reason}"):
            choose(engine, "sm_90-tp2")
        monkeypatch.setenv("RANK", "0")
        assert choose(engine)[0] == "sm_90-tp2"
        monkeypatch.delenv("RANK")
        here(monkeypatch, gpu, other, gpu)
        assert choose(engine)[0] == "sm_90-tp2"


def test_ranks_need_nccl(two: Path, monkeypatch: pytest.MonkeyPatch):
    here(monkeypatch, *[Gpu("NVIDIA H200", 90)] * 2)
    monkeypatch.setattr(nccl, "LIBRARY", "libnccl-that-is-not-here.so.2")
    monkeypatch.setattr(nccl, "_of_packages", lambda: [])
    profiles.nccl_problem.cache_clear()
    with EngineFile.open(two) as engine, pytest.raises(ResourceError) as caught:
        choose(engine)
    profiles.nccl_problem.cache_clear()
    assert "needs NCCL (libnccl-that-is-not-here.so.2: cannot open" in str(caught.value)
    assert "pip install '.[nccl]' in a checkout of llmc" in str(caught.value)
