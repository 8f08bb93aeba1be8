"""An engine whose table of tiles chooses the kernels in CUDA C++: its plan, its numbers, and what a driver is given."""

from __future__ import annotations

import json
import subprocess
import sys
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from support.engines import NARROW, NARROW_BATCH, quantized_logits, relative, small_checkpoint, some_ids
from support.fakes import libcuda_session as session
from support.fakes.libcuda import compiled, needs_libcuda, trace

import llmc
from llmc.compiler.targets.cuda.cubins.cache import source_digest
from llmc.compiler.targets.cuda.kernels.linear.native import stream
from llmc.compiler.targets.cuda.kernels.linear.parts.fused import OPERANDS
from llmc.compiler.targets.cuda.kernels.linear.tiles import NATIVE, Tile
from llmc.compiler.targets.cuda.tuning.tactics import Row, Table
from llmc.compiler.targets.simulate.device import SimulatedDevice
from llmc.runtime.engine_file.file import EngineFile
from llmc.runtime.plan.executor import PagedExecutor
from llmc.runtime.plan.plan import Launch, Plan
from llmc.runtime.scheduling.executor import ScheduledSequence

VOCAB = 4096
SHAPES = ((128, 64), (64, 64), (256, 64), (64, 128))
"""q|k|v, o, gate|up and down."""
BOUND = 3e-2
STREAM, GEMM = Tile(32, 128, 1, 1, 4, 2, NATIVE), Tile(128, 128, 64, 1, 4, 3, NATIVE)
MIXED = 512
"""Tokens of the mixed program that the prompts take."""
SMALL_STEP = 64
"""Tokens of the mixed program whose linears read their weights as they are."""
HEAD = (VOCAB, 64)


@pytest.fixture(scope="module")
def engines(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path, Path]:
    """In FP8 with the heuristic's tiles and with native ones, for one token and for large steps; in bf16 with those."""
    folder = tmp_path_factory.mktemp("routes")
    wider = {**NARROW, "vocab_size": VOCAB, "num_hidden_layers": 2, "intermediate_size": 128}
    checkpoint = small_checkpoint(folder / "c", tokenizer=True, **wider)
    rows = [Row("small", n, k, "fp8", 1, STREAM, 10, 20) for n, k in SHAPES]
    rows += [Row("fp8", n, k, "fp8", MIXED, GEMM, 10, 20) for n, k in SHAPES]
    rows += [Row("small", n, k, "dense", 1, STREAM, 10, 20) for n, k in (*SHAPES, HEAD)]
    table = Table(90, "NVIDIA H200", "13.0", "2026-01-31", source_digest(), "3.9.0", tuple(rows))
    table.write(folder / "native.yaml")
    made = [
        llmc.build(
            checkpoint,
            folder / name,
            targets=["sm_90"],
            max_batch=NARROW_BATCH,
            quantize=quantize,
            activations=activations,
            tactics=tactics,
        )
        for name, quantize, activations, tactics in (
            ("heuristic.llmc", "fp8", "fp8", []),
            ("native.llmc", "fp8", "fp8", [folder / "native.yaml"]),
            ("dense.llmc", "none", None, [folder / "native.yaml"]),
        )
    ]
    return made[0], made[1], made[2]


def plan_of(path: Path) -> Plan:
    with EngineFile.open(path) as engine:
        return Plan.from_json(engine.section("profiles/sm_90/plan.json"), what=str(path))


def launches(plan: Plan, kernel: str) -> list[tuple[int, bool, Launch]]:
    """(tokens of the program, whether it decodes, launch) of every launch of a kernel."""
    return [
        (program.tokens, program.decode, launch)
        for program in plan.programs
        for launch in program.kernels
        if plan.modules[launch.module].kernel == kernel
    ]


def test_a_table_chooses_the_kernels_and_launches_are_like_others(engines: tuple[Path, Path, Path]):
    heuristic, native, _ = map(plan_of, engines)
    assert not launches(heuristic, "linear_stream") and not launches(heuristic, "linear_gemm")
    streams, products = launches(native, "linear_stream"), launches(native, "linear_gemm")
    assert {(tokens, decode) for tokens, decode, _ in streams} == {(1, True)} and len(streams) == 8
    assert {decode for _, decode, _ in products} == {False} and len(products) == 5, (
        "of the last layer only some rows count"
    )
    modules = [native.modules[launch.module] for *_, launch in (*streams, *products)]
    assert {one.constants.get("ACTIVATION") for one in modules} == {None, "silu"}
    assert {(one.warps, one.code.pdl) for one in modules if one.code is not None} == {(5, True), (8, True)}
    types = {one.types[:3] for one in modules if one.kernel == "linear_gemm"}
    assert types == {("u8[64,128]", "*fp32", "u8[128,128]")}
    others = {plan.kernels for plan in (heuristic, native)}
    assert others == {source_digest()}


@pytest.mark.parametrize(("which", "ordered", "heads"), [(1, 8, 0), (2, 0, 1)])
def test_streams_divide_for_the_norm_before_them_and_begin_the_next(
    engines: tuple[Path, Path, Path], which: int, ordered: int, heads: int
):
    """q|k|v, gate|up and the head divide; o and down begin. Weights in FP8 want their activations in order."""
    plan = plan_of(engines[which])
    streams = [plan.modules[launch.module].constants for *_, launch in launches(plan, "linear_stream")]
    names = Counter(name for constants in streams for name in stream.KERNEL.given(constants))
    assert {name: names[name] for name in OPERANDS} == {
        "x_squares": 4 + heads,
        **dict.fromkeys(("norm_weight", "normed", "squares"), 4),
    }
    assert sum(constants["ORDERED"] for constants in streams) == ordered


def logits(path: Path, prompt: int) -> list[np.ndarray]:
    """Of a prompt and of a decode step of one token, interpreted."""
    ids = prompt_of(prompt + 1)
    executor = PagedExecutor(EngineFile.open(path), "sm_90", SimulatedDevice, max_batch=2)
    try:
        found = []
        for start, stop in ((0, prompt), (prompt, prompt + 1)):
            scheduled = ScheduledSequence(0, tuple(ids[start:stop]), start, ((0, 1),), None, len(ids), rows="all")
            (output,) = executor.collect(executor.submit((scheduled,)))
            assert output.logits is not None
            found.append(output.logits)
        return found
    finally:
        executor.close()


def prompt_of(count: int) -> list[int]:
    return some_ids(count, 3, VOCAB)


def test_the_interpreter_runs_the_definitions(engines: tuple[Path, Path, Path]):
    for one, other in zip(logits(engines[0], 69), logits(engines[1], 69), strict=True):
        assert relative(one, other) < 2e-2


@pytest.mark.parametrize(("which", "quantize"), [(1, "fp8"), (2, "none")])
def test_a_decode_step_has_the_oracles_logits(engines: tuple[Path, Path, Path], which: int, quantize: str):
    path = engines[which]
    expected = quantized_logits(path, quantize, prompt_of(SMALL_STEP), path.parent / "c")
    assert relative(np.concatenate(logits(path, SMALL_STEP - 1)), expected) < BOUND


class TestOverAFakeDriver:
    pytestmark = needs_libcuda

    def test_tensor_maps_are_encoded_once_and_passed(self, engines: tuple[Path, Path, Path], tmp_path: Path):
        """With graphs and early launches, and without."""
        plan = plan_of(engines[1])
        command = [sys.executable, session.__file__, str(engines[1]), str(tmp_path)]
        done = subprocess.run(command, env=compiled(tmp_path), capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        said = json.loads(done.stdout.splitlines()[-1])
        products = launches(plan, "linear_gemm")
        rows = {tokens for tokens, _, _ in products}
        lines = {name: list(trace(tmp_path / f"{name}.txt")) for name in said["runs"]}
        maps = [line.facts for one in lines.values() for line in one if line.name == "cuTensorMapEncodeTiled"]
        weights = {(str(k), str(n), "128,128") for n, k in SHAPES}
        tokens = {(str(k), str(count), "128,64") for _, k in SHAPES for count in rows}
        assert {(one["columns"], one["rows"], one["box"]) for one in maps} == weights | tokens
        assert len({tuple(one.items()) for one in maps}) == len(maps), "each is encoded once"
        known = {int(one["at"], 16) for one in maps}
        for name, run in said["runs"].items():
            assert run["tokens"] == list(session.ANSWERS)
            launched = [
                line for line in lines[name] if line.name == "cuLaunchKernelEx" and "gemm" in line.facts["entry"]
            ]
            assert launched
            for line in launched:
                values = [int(text, 16) for text in line.facts["values"].split(",")]
                assert {values[0], values[2]} <= known and line.number("threads") == 256
                assert values[-2:] == [0, 0]
