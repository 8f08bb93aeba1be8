"""What the cpu executor refuses: little memory, bad settings, engines with right digests whose content lies."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import onnx
import pytest
from support.engines import PicoEngine, forge

import llmc
from llmc.cli.app import run as run_command
from llmc.runtime.cpu import executor as cpu
from llmc.runtime.cpu import weights
from llmc.runtime.cpu.slots import LEAST_POSITIONS, SlotCaches
from llmc.runtime.engine_file.file import EngineFile
from llmc.runtime.engine_file.manifest import LayerCache, Manifest
from llmc.runtime.errors import EngineError, RecipeError, ResourceError
from llmc.runtime.machine import SystemMemory

GRAPH = "profiles/cpu/graph.onnx"


@pytest.fixture(scope="module")
def path(pico_engine: PicoEngine) -> Path:
    return pico_engine("none")


def test_a_bad_llmc_threads_is_exit_2(path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    monkeypatch.setenv("LLMC_THREADS", "many")
    assert run_command(["run", str(path), "x", "--max-tokens", "1"]) == 2
    assert "LLMC_THREADS" in capsys.readouterr().err
    with pytest.raises(RecipeError, match="expected LLMC_THREADS from 1 to 4096\n  found: 'many'"):
        llmc.load(path)


def test_too_little_memory_is_exit_4_before_any_is_taken(
    path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    monkeypatch.setattr(weights, "system_memory", lambda: SystemMemory(1 << 30, 20 << 20))
    monkeypatch.setattr(cpu, "_session", lambda *_, **__: pytest.fail("it went on"))
    with pytest.raises(ResourceError, match=r"needs 0\.0 GB of memory\n  found: 0\.0 GB free\n"):
        llmc.load(path)
    assert run_command(["run", str(path), "x"]) == 4
    assert "--quantize int8" in capsys.readouterr().err


def test_the_plan_counts_what_is_not_mapped(pico_engine: PicoEngine, monkeypatch: pytest.MonkeyPatch):
    """An fp8 engine runs as float32: 7.1 M weights."""
    needed = 4 * 7_000_000
    monkeypatch.setattr(weights, "system_memory", lambda: SystemMemory(1 << 30, needed))
    with pytest.raises(ResourceError):
        llmc.load(pico_engine("fp8"))
    monkeypatch.setattr(weights, "system_memory", lambda: SystemMemory(1 << 30, needed + 2_000_000))
    llmc.load(pico_engine("fp8")).close()


def test_a_request_without_memory_for_its_cache_is_exit_4_and_others_run_on(
    path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    """A position takes 8 layers x 2 x 2 heads x 64 x 4 bytes; the engine of 512 positions loads without any."""
    position = 4 * 8 * 2 * 2 * 64
    with llmc.load(path) as engine:
        monkeypatch.setattr(cpu, "system_memory", lambda: SystemMemory(1 << 30, 100 * position))
        running = engine.stream([1, 2], max_tokens=98, ignore_eos=True)
        waiting = engine.stream([3], max_tokens=99, ignore_eos=True)
        with pytest.raises(
            ResourceError, match=r"a request of 301 tokens, .* 0\.00 GB\n  found: 0\.00 GB of memory free"
        ):
            engine.generate([1], max_tokens=300)
        assert running.result().completion_tokens == 98
        assert waiting.result().completion_tokens == 99, "it took the slot of the first"
    monkeypatch.setattr(cpu, "system_memory", lambda: SystemMemory(1 << 30, 1 << 26))
    monkeypatch.setattr(SlotCaches, "bytes", lambda _, positions: positions << 26)
    assert run_command(["run", str(path), "x"]) == 4
    assert "a shorter prompt or a smaller max_tokens" in capsys.readouterr().err


def test_memory_is_that_of_the_requests_at_once_and_not_of_the_largest_batch(path: Path):
    """Before, caches of eight sequences of 512 positions were laid out whatever was asked."""
    with EngineFile.open(path) as opened:
        assert opened.manifest.profiles["cpu"].max_batch == 8
    with llmc.load(path) as engine:
        caches = engine._loop._executor.slots  # type: ignore[attr-defined]
        assert caches.blocks == ()
        for _ in range(3):
            engine.generate([5, 6, 7], max_tokens=4)
        assert {array.shape for array in caches.arrays.values()} == {(1, 2, LEAST_POSITIONS, 64)}
        engine.generate([[1], [2], [3]], max_tokens=8, ignore_eos=True)
        assert {array.shape for array in caches.arrays.values()} == {(3, 2, LEAST_POSITIONS, 64)}
        engine.generate([8], max_tokens=400)
        assert {array.shape for array in caches.arrays.values()} == {(3, 2, 512, 64)}


def graph_of(path: Path) -> onnx.ModelProto:
    with EngineFile.open(path) as engine:
        return onnx.load_from_string(engine.section(GRAPH))


def refusal(path: Path) -> str:
    with pytest.raises(EngineError) as caught:
        llmc.load(path)
    return str(caught.value)


def test_an_operator_off_the_list_is_refused(path: Path, tmp_path: Path):
    graph = graph_of(path)
    node = graph.graph.node[3]
    node.op_type, node.domain = "RandomNormal", ""
    target = forge(path, tmp_path / "e.llmc", sections={GRAPH: graph.SerializeToString()})
    message = refusal(target)
    assert GRAPH in message
    assert "RandomNormal" in message


def test_a_graph_that_reads_another_file_is_refused(path: Path, tmp_path: Path):
    graph = graph_of(path)
    graph.graph.initializer[0].external_data[0].value = "/etc/passwd"
    target = forge(path, tmp_path / "e.llmc", sections={GRAPH: graph.SerializeToString()})
    assert "/etc/passwd" in refusal(target)


def test_a_graph_that_does_not_fit_together_is_refused(path: Path, tmp_path: Path):
    graph = graph_of(path)
    del graph.graph.node[0]
    target = forge(path, tmp_path / "e.llmc", sections={GRAPH: graph.SerializeToString()})
    message = refusal(target)
    assert f"cannot load {GRAPH!r} of {target}\n  found: " in message
    assert message.endswith("build the engine again")


def test_a_graph_without_an_input_of_the_runtime_is_refused(path: Path, tmp_path: Path):
    graph = graph_of(path)
    for value in graph.graph.input:
        value.name = value.name.replace("logits_indices", "lines")
    for node in graph.graph.node:
        node.input[:] = [
            name.replace("logits_indices", "lines") if name == "logits_indices" else name for name in node.input
        ]
    target = forge(path, tmp_path / "e.llmc", sections={GRAPH: graph.SerializeToString()})
    with (
        llmc.load(target) as engine,
        pytest.raises(EngineError, match="expected a graph without 'lines'"),
    ):
        engine.generate([1], max_tokens=1)
    assert run_command(["run", str(target), "x", "--max-tokens", "1"]) == 3


def test_joined_weights_that_must_be_copied_are_planned(path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """A small manifest must not ask for many copies of the file: each join that is no view counts."""
    with EngineFile.open(path) as engine:
        first, *_, last = (
            {"op": "stored", "name": info.name, "dtype": info.dtype, "shape": list(info.shape)}
            for info in engine.tensors.values()
            if info.name.endswith("mlp.up_proj.weight")
        )
    joins = {f"join.{i}": {"op": "concat", "parts": [last, first], "axis": 0} for i in range(200)}
    target = forge(path, tmp_path / "e.llmc", manifest=with_profile(lambda p: {"weights": {**p["weights"], **joins}}))
    monkeypatch.setattr(weights, "system_memory", lambda: SystemMemory(1 << 30, 100_000_000))
    monkeypatch.setattr(cpu, "_session", lambda *_, **__: pytest.fail("it went on"))
    with pytest.raises(ResourceError, match=r"needs 0\.2 GB of memory\n  found: 0\.1 GB free"):
        llmc.load(target)


def with_profile(change: Callable[[dict[str, Any]], dict[str, Any]]) -> Callable[[Manifest], Manifest]:
    """A manifest whose cpu profile has other fields."""

    def changed(manifest: Manifest) -> Manifest:
        profile = manifest.profiles["cpu"]
        return replace(manifest, profiles={"cpu": replace(profile, **change(vars(profile)))})

    return changed


NORM = {"op": "stored", "name": "model.norm.weight", "dtype": "BF16", "shape": [256]}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda p: {"weights": {**p["weights"], "x": {"op": "exec"}}}, "operation 'exec'"),
        (lambda p: {"weights": {**p["weights"], "x": {**NORM, "name": "model.nom.weight"}}}, "no such tensor"),
        (lambda p: {"weights": {**p["weights"], "x": {**NORM, "shape": [255]}}}, r"of shape \[255\]"),
        (lambda p: {"weights": {**p["weights"], "x": {**NORM, "dtype": "F32"}}}, "as F32 .* for weight 'x'"),
        (
            lambda p: {"weights": {**p["weights"], "x": {**NORM, "dtype": "F8_E4M3"}}},
            r"weight 'x' of .*\n  found: F8_E4M3",
        ),
        (
            lambda p: {"weights": {**p["weights"], "x": {"op": "slice", "of": NORM, "axis": 1, "start": 0, "stop": 1}}},
            "axis",
        ),
        (lambda p: {"weights": {}}, "weights_as_inputs as a list of weights"),
        (
            lambda p: {"weights": {}, "needs": {**p["needs"], "weights_as_inputs": []}},
            "cannot load 'profiles/cpu/graph.onnx'",
        ),
        (
            lambda p: {"needs": {**p["needs"], "weights_as_inputs": "rope.cos"}},
            "weights_as_inputs as a list of weights",
        ),
        (lambda p: {"graph": "profiles/gpu/graph.onnx"}, "no such section"),
        (lambda p: {"needs": {"packed_bytes": "lots"}}, "packed_bytes"),
        (lambda p: {"max_batch": 0}, "max_batch 0"),
    ],
)
def test_a_profile_that_lies_is_refused(path: Path, tmp_path: Path, change: Any, message: str):
    target = forge(path, tmp_path / "e.llmc", manifest=with_profile(change))
    with pytest.raises((EngineError, ResourceError), match=message):
        llmc.load(target)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"caches": (LayerCache(1, 64),) * 8},
            r"8 layers, caches \[\(1, 64\)\], past_lengths, 4096 logits .*\n  found: 8 layers, caches \[\(2, 64\)\]",
        ),
        ({"caches": (LayerCache(2, 64),) * 7}, r"expected a graph of 7 layers, .*\n  found: 8 layers"),
        ({"caches": ()}, r"a graph of 0 layers, .*\n  found: 8 layers"),
        ({"caches": (LayerCache(0, 64),) * 8}, r"caches \[\(0, 64\)\]"),
        ({"caches": (LayerCache(2, 1 << 50),) * 8}, r"caches \[\(2, 1125899906842624\)\]"),
        (
            {"caches": (LayerCache(2, 64, 32),) * 8},
            r"window_lengths.32, 4096 logits .*\n  found: .*past_lengths, log",
        ),
        ({"vocab_size": 4095}, r"4095 logits in .*\n  found: .* logits \['R', 4096\]"),
    ],
)
def test_model_facts_that_lie_are_refused(path: Path, tmp_path: Path, change: dict[str, Any], message: str):
    target = forge(path, tmp_path / "e.llmc", manifest=lambda m: replace(m, model=replace(m.model, **change)))
    with pytest.raises((EngineError, ResourceError), match=message):
        llmc.load(target)
