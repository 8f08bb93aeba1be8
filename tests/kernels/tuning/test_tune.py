"""`llmc tune` without a GPU: over the fake driver, with kernels whose time and result are functions of their tile."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support.engines import NARROW, small_checkpoint
from support.fakes.driver import FakeApi, FakeKernel, Memory

import llmc
from llmc.cli.app import run
from llmc.compiler.targets.cuda.call import EMULATE
from llmc.compiler.targets.cuda.cubins.cache import source_digest
from llmc.compiler.targets.cuda.cubins.compile import Cubin, Specialization
from llmc.compiler.targets.cuda.kernels.linear import large as linear_large
from llmc.compiler.targets.cuda.kernels.linear import small as linear_small
from llmc.compiler.targets.cuda.kernels.linear.tiles import default_tile, wrong_tile
from llmc.compiler.targets.cuda.tuning import tune
from llmc.compiler.targets.cuda.tuning.measure import Effort
from llmc.compiler.targets.cuda.tuning.tactics import load_table
from llmc.compiler.targets.cuda.tuning.tune import Tuned, TunedLinear, Tuner, candidates, linears_of
from llmc.runtime.cuda import gpus
from llmc.runtime.cuda.driver import Driver
from llmc.runtime.engine_file.file import EngineFile
from llmc.runtime.errors import EngineError, LlmcError
from llmc.runtime.plan.plan import MachineCode, Plan

BASE = 100e-6
"""Seconds of a kernel whose tile nobody said anything about."""
QUICK = Effort(rounds=3, cold=64 << 10, copies=4)
GPU = gpus.Gpu(0, "Toy H200", 90, 1 << 30)
KERNELS = {"linear_small": linear_small.KERNEL, "linear_large": linear_large.KERNEL}


class Gpu(FakeApi):
    """A GPU that compiles what it is asked to, and whose clock moves by what its kernels take.

    seconds, and result (what a kernel writes everywhere): by constants and warps. leftover: what it leaves in counters.
    """

    def __init__(self) -> None:
        self.made: dict[str, FakeKernel] = {"none": FakeKernel((), lambda: None)}
        super().__init__(self.made)
        self.now = 0.0
        self.seconds: Callable[[dict[str, Any]], float] = lambda facts: BASE
        self.result: Callable[[dict[str, Any]], float] = lambda facts: 1.0
        self.leftover: Callable[[dict[str, Any]], int] = lambda facts: 0
        self.spills: Callable[[dict[str, Any]], int] = lambda facts: 0
        self.refuses: Callable[[dict[str, Any]], bool] = lambda facts: False
        self.read: dict[str, set[int]] = {}
        self.compiled: list[Specialization] = []

    def cuEventRecord(self, event: Any, stream: Any):
        self._queue(stream, lambda: setattr(event, "time", self.now))
        return super().cuEventRecord(event, stream)

    def cuEventElapsedTime(self, start: Any, stop: Any):
        return super().cuEventElapsedTime(start, stop)[0], (stop.time - start.time) * 1e3

    def try_compile(
        self, specializations: Iterable[Specialization], sm: int, **_: Any
    ) -> dict[Specialization, Cubin | LlmcError]:
        """In the place of the compiler."""
        return {one: self._compile(one, sm) for one in specializations}

    def _compile(self, specialization: Specialization, sm: int) -> Cubin | LlmcError:
        constants = dict(specialization.constants)
        facts = {**constants, "warps": specialization.warps}
        if self.refuses(facts):
            return LlmcError(f"kernel {specialization}", found="too large")
        self.compiled.append(specialization)
        names = [n for n in KERNELS[specialization.kernel].parameters if n not in constants and n != EMULATE]
        entry = f"k{len(self.made)}"

        def compute(memory: Memory, grid: tuple[int, ...], *values: int) -> None:
            given = dict(zip(names, values, strict=False))
            columns = int(constants["N"] or 0) // (2 if constants["ACTIVATION"] else 1)
            count = int(given["tokens"]) * columns
            kind = np.float32 if specialization.types[names.index("y")] == "*fp32" else np.uint16
            number = np.array([self.result(facts)], np.float32)
            whole = number if kind is np.float32 else (number.view(np.uint32) >> 16).astype(np.uint16)
            memory.array(given["y"], kind, count)[:] = whole[0]
            if "counters" in given:
                memory.array(given["counters"], np.int32, 1)[:] += self.leftover(facts)
            self.read.setdefault(entry, set()).add(given["w"])
            self.now += self.seconds(facts)

        self.made[entry] = FakeKernel(specialization.types, compute)
        spills = self.spills(facts)
        return Cubin(sm, b"code", "", specialization.types, MachineCode(entry, 0, 32, spills))


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> Gpu:
    api = Gpu()
    monkeypatch.setattr(tune, "try_compile", api.try_compile)
    monkeypatch.setattr(Driver, "load", staticmethod(lambda ordinal=0: Driver(api, ordinal)))
    monkeypatch.setattr(gpus, "detect", lambda: gpus.DetectedGpus("13.0", (GPU,)))
    return api


@pytest.fixture(scope="module")
def engine(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One layer of int8 linears, 128 x 64, 64 x 64, 192 x 64, 64 x 96 and a head of 512 x 64; batches of 1 and 2."""
    folder = tmp_path_factory.mktemp("tune")
    checkpoint = small_checkpoint(folder / "c", tokenizer=False, num_hidden_layers=1, **NARROW)
    return llmc.build(checkpoint, folder / "e.llmc", targets=["sm_90"], max_batch=2, quantize="int8")


def linears(path: Path) -> tuple[TunedLinear, ...]:
    with EngineFile.open(path) as engine:
        return linears_of(Plan.from_json(engine.section("profiles/sm_90/plan.json"), what="plan"))


def tuned(path: Path, api: Gpu, *, limit: float = 1e9, clock: Callable[[], float] | None = None) -> Tuned:
    driver = Driver(api)
    with EngineFile.open(path) as engine:
        tuner = Tuner(driver, limit, QUICK, clock or (lambda: 0.0))
        found = tuner.tune(engine, "sm_90", gpu="Toy H200", date="2026-01-31")
    driver.close()
    assert not (api.device.count or api.host.count or any(api.live.values()))
    return found


def test_every_distinct_linear_of_the_plan_is_found_once(engine: Path):
    found = linears(engine)
    shapes = {(128, 64), (64, 64), (192, 64), (64, 96), (512, 64)}
    assert {(one.n, one.k) for one in found if one.tokens == 1} == shapes
    assert len({one.key for one in found}) == len(found) == 4 * len(shapes)
    assert [one.decode for one in found] == sorted((one.decode for one in found), reverse=True)
    assert {one.kind for one in found if one.tokens <= 64} == {"small"}
    assert {(one.kind, one.tokens) for one in found if one.tokens > 64} == {("large", 514), ("large", 130)}
    first = [one.bytes for one in found if one.decode and one.tokens == 1]
    assert first == sorted(first, reverse=True)


def test_candidates_are_the_heuristic_and_its_neighbours(engine: Path):
    for linear in linears(engine):
        tiles = candidates(linear, 90)
        base = default_tile(linear.kind, linear.n, linear.k, linear.format, linear.tokens, 90)
        assert tiles[0] == base and len(set(tiles)) == len(tiles) > 5
        for tile in tiles:
            changed = [name for name in vars(base) if getattr(base, name) != getattr(tile, name)]
            assert len(changed) <= 2
            assert not wrong_tile(linear.kind, linear.n, linear.k, linear.format, linear.tokens, tile, 90)


def test_the_fastest_tile_wins(engine: Path, gpu: Gpu):
    def seconds(facts: dict[str, Any]) -> float:
        return BASE * (0.5 if facts["STAGES"] == 2 else 1) * (0.5 if facts["BLOCK_N"] == 128 else 1)

    gpu.seconds = seconds
    found = tuned(engine, gpu)
    small = [row for row in found.table.rows if row.kind == "small"]
    assert found.linears == len(found.table.rows) and len(small) == 15
    for row in small:
        assert (row.tile.stages, row.tile.block_n) == (2, 128)
        assert (row.ns, row.heuristic_ns) == (25000, 100000)
    facts = (found.table.sm, found.table.gpu, found.table.driver, found.table.date, found.table.kernels)
    assert facts == (90, "Toy H200", "13.0", "2026-01-31", source_digest())
    assert found.wrong == ()


def test_launches_read_another_copy_of_the_weights_each(engine: Path, gpu: Gpu):
    tuned(engine, gpu)
    assert gpu.read and all(2 <= len(addresses) <= QUICK.copies for addresses in gpu.read.values())


def test_a_gain_within_the_noise_keeps_the_heuristic(engine: Path, gpu: Gpu):
    gpu.seconds = lambda facts: BASE * (0.995 if facts["STAGES"] == 2 else 1)
    for row in tuned(engine, gpu).table.rows:
        assert row.tile == default_tile(row.kind, row.n, row.k, row.format, row.tokens, 90)
        assert row.ns == row.heuristic_ns == 100000


@pytest.mark.parametrize("number", [1.05, float("nan")])
def test_a_fast_tile_with_a_wrong_result_is_rejected(engine: Path, gpu: Gpu, number: float):
    gpu.seconds = lambda facts: BASE * (0.1 if facts["STAGES"] == 2 else 1)
    gpu.result = lambda facts: number if facts["STAGES"] == 2 else 1.0
    found = tuned(engine, gpu)
    assert all(row.tile.stages != 2 for row in found.table.rows)
    assert found.wrong and all("stages=2" in text for text in found.wrong)


def test_a_difference_of_roundings_is_not_wrong(engine: Path, gpu: Gpu):
    gpu.result = lambda facts: 1.0 + (2.0**-8 if facts["STAGES"] == 2 else 0)
    assert tuned(engine, gpu).wrong == ()


def test_a_tile_that_leaves_counters_is_rejected(engine: Path, gpu: Gpu):
    gpu.leftover = lambda facts: 1
    found = tuned(engine, gpu)
    assert any("splits=2" in text or "splits=3" in text for text in found.wrong)
    assert all(row.tile.splits == 1 for row in found.table.rows)


def test_what_spills_or_does_not_compile_is_not_measured(engine: Path, gpu: Gpu):
    gpu.seconds = lambda facts: BASE * (0.1 if facts["warps"] == 8 or facts["BLOCK_N"] == 32 else 1)
    gpu.spills = lambda facts: 8 * (facts["warps"] == 8)
    gpu.refuses = lambda facts: facts["BLOCK_N"] == 32
    found = tuned(engine, gpu)
    for row in found.table.rows:
        base = default_tile(row.kind, row.n, row.k, row.format, row.tokens, 90)
        assert row.tile.block_n != 32 and row.tile.warps in {base.warps, 2, 4}


def test_a_heuristic_that_does_not_compile_is_an_error(engine: Path, gpu: Gpu):
    gpu.refuses = lambda facts: True
    with pytest.raises(LlmcError, match=r"kernel linear_small .* N=.*\n  found: too large"):
        tuned(engine, gpu)


def test_a_kernel_that_fails_ends_the_measuring_and_frees_everything(engine: Path, gpu: Gpu):
    gpu.fail["cuLaunchKernelEx"] = type(gpu.cuInit(0)[0])["CUDA_ERROR_ILLEGAL_ADDRESS"]
    with pytest.raises(EngineError, match="a kernel failed"), EngineFile.open(engine) as opened:
        Tuner(Driver(gpu), 1e9, QUICK).tune(opened, "sm_90", gpu="Toy", date="2026-01-31")
    assert not (gpu.device.count or gpu.host.count or gpu.live["graphs"] or gpu.live["modules"])


def test_the_time_limit_is_kept(engine: Path, gpu: Gpu):
    """A clock that the GPU's work alone moves: what is not finished in time is not in the table."""
    whole = tuned(engine, gpu)
    taken = gpu.now
    gpu.now = 0.0
    part = tuned(engine, gpu, limit=taken / 3, clock=lambda: gpu.now)
    assert 0 < len(part.table.rows) < len(whole.table.rows) == whole.linears == part.linears
    assert taken / 3 <= gpu.now < taken / 2
    keys = [linear.key for linear in linears(engine)]
    assert [row.key for row in part.table.rows] == keys[: len(part.table.rows)]


def test_the_command_writes_a_table_that_a_build_takes(
    engine: Path, gpu: Gpu, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(tune, "Tuner", partial(Tuner, effort=QUICK))
    gpu.seconds = lambda facts: BASE * (0.25 if facts["STAGES"] == 2 else 1)
    assert run(["tune", str(engine)]) == 0
    shown = capsys.readouterr()
    assert [path.name for path in tmp_path.iterdir()] == ["sm_90.yaml"]
    table = load_table(tmp_path / "sm_90.yaml")
    assert "20 of 20 linears" in shown.out and table.name in shown.out
    said = "small 512 x 64 int8, 1 token: 25.00 µs, 4.00 times as fast as the heuristic's tile\n"
    assert said in shown.err
    assert run(["tune", str(engine), "--json", "-o", "t.yaml"]) == 0
    facts, second = json.loads(capsys.readouterr().out), load_table(tmp_path / "t.yaml")
    assert (facts["path"], facts["name"], facts["profile"]) == ("t.yaml", second.name, "sm_90")
    assert sorted(map(str, facts["rows"])) == sorted(str(row.numbers) for row in second.rows) and facts["linears"] == 20
    monkeypatch.undo()
    built = llmc.build(
        engine.parent / "c",
        tmp_path / "again.llmc",
        targets=["sm_90"],
        max_batch=2,
        quantize="int8",
        tactics=[tmp_path / "sm_90.yaml"],
    )
    with EngineFile.open(built) as opened:
        plan = Plan.from_json(opened.section("profiles/sm_90/plan.json"), what="plan")
    assert plan.tactics == table.name
    assert {module.stages for module in plan.modules if module.kernel == "linear_small"} == {2}


def test_interrupted_it_leaves_no_file(
    engine: Path, gpu: Gpu, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    monkeypatch.chdir(tmp_path)
    old = "# Measured by llmc tune.\nwhat was there"
    (tmp_path / "sm_90.yaml").write_text(old)
    monkeypatch.setattr(tune, "Tuner", partial(Tuner, effort=QUICK))

    def seconds(facts: dict[str, Any]) -> float:
        if facts["N"] == 64:
            raise KeyboardInterrupt
        return BASE

    gpu.seconds = seconds
    assert run(["tune", str(engine)]) == 130
    assert "512 x 64" in capsys.readouterr().err  # it had begun
    assert [path.read_text() for path in tmp_path.iterdir()] == [old]
    assert not (gpu.device.count or any(gpu.live.values()))


def test_too_short_a_limit_writes_nothing(
    engine: Path, gpu: Gpu, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
):
    assert run(["tune", str(engine), "--time-limit", "1e-9", "-o", str(tmp_path / "t.yaml")]) == 4
    assert "none of 20 measured\n  try: a longer --time-limit" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_the_table_never_replaces_the_engine(engine: Path, gpu: Gpu, capsys: pytest.CaptureFixture[str]):
    before = engine.read_bytes()
    for more in ((), ("--force",)):
        assert run(["tune", str(engine), "-o", str(engine), *more]) == 2
        assert f"found: {engine} is an input of this command" in capsys.readouterr().err
    assert engine.read_bytes() == before and not gpu.compiled


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (("--time-limit", "0"), 2, "expected --time-limit in seconds, a number above 0\n  found: 0"),
        (("--profile", "sm_80"), 3, "profile 'sm_80'"),
        (
            ("-o", "/no/folder/t.yaml"),
            4,
            "cannot write a table of tiles to /no/folder/t.yaml\n  found: no folder /no/folder",
        ),
    ],
)
def test_usage_is_judged_first(
    engine: Path, gpu: Gpu, arguments: tuple[str, ...], code: int, message: str, capsys: pytest.CaptureFixture[str]
):
    assert run(["tune", str(engine), *arguments]) == code
    assert message in capsys.readouterr().err and not gpu.compiled


@pytest.mark.parametrize(
    ("found", "message"),
    [
        (gpus.DetectedGpus(problem="no NVIDIA driver (gone)"), "found: no NVIDIA driver (gone)"),
        (gpus.DetectedGpus("13.0", (gpus.Gpu(0, "Old", 80, 1),)), "found: Old has 8.0"),
    ],
)
def test_without_the_gpu_it_ends_with_4(
    engine: Path,
    found: gpus.DetectedGpus,
    message: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
):
    monkeypatch.setattr(gpus, "detect", lambda: found)
    assert run(["tune", str(engine)]) == 4
    said = capsys.readouterr().err
    assert "cannot tune without a GPU of compute capability 9.0" in said and message in said
