"""An FP8 cache: half the bytes, and logits that stay within E4M3's rounding of the oracle's."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from support.commands import Call
from support.engines import NARROW, NARROW_BATCH, quantized_logits, relative, small_checkpoint, some_ids

import llmc
from llmc.compiler.targets.simulate.device import SimulatedDevice
from llmc.runtime.engine_file.file import EngineFile
from llmc.runtime.plan.executor import PagedExecutor
from llmc.runtime.plan.plan import Plan
from llmc.runtime.scheduling.executor import ScheduledSequence

VOCAB = NARROW["vocab_size"]


@pytest.fixture
def call(capsys: pytest.CaptureFixture[str]) -> Call:
    return Call(capsys)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("kv") / "c"
    return small_checkpoint(folder, tokenizer=False, num_hidden_layers=1, **NARROW)


@pytest.fixture(scope="module")
def engines(checkpoint: Path) -> dict[str, Path]:
    return {
        kv: llmc.build(
            checkpoint, checkpoint.parent / f"{kv}.llmc", targets=["cpu", "sm_90"], max_batch=NARROW_BATCH, kv=kv
        )
        for kv in ("none", "fp8")
    }


def plan_of(path: Path) -> Plan:
    with EngineFile.open(path) as engine:
        return Plan.from_json(engine.section(engine.manifest.profiles["sm_90"].graph), what="plan")


def test_the_cache_takes_half_the_bytes(engines: dict[str, Path]):
    sizes = {}
    for kv, path in engines.items():
        caches = [tensor for tensor in plan_of(path).tensors.values() if tensor.kind == "cache"]
        assert len(caches) == 2
        sizes[kv] = sum(tensor.bytes({"blocks": 3}) for tensor in caches)
    assert 2 * sizes["fp8"] == sizes["none"] > 0


def test_logits_are_the_oracles_but_for_the_caches_rounding(engines: dict[str, Path], checkpoint: Path):
    """A prompt in two mixed steps, then single tokens through the decode program."""
    ids = [token % VOCAB for token in some_ids(75, 5)]
    steps = (40, 30, 1, 1, 1, 1, 1)
    found = {}
    for kv, path in engines.items():
        executor = PagedExecutor(EngineFile.open(path), "sm_90", SimulatedDevice, max_batch=2)
        rows, start = [], 0
        try:
            for count in steps:
                prompt = 70 if start < 70 else start
                scheduled = ScheduledSequence(
                    0, tuple(ids[start : start + count]), start, ((1, 0),), None, prompt, rows="all"
                )
                (output,) = executor.collect(executor.submit((scheduled,)))
                rows.append(output.logits)
                start += count
        finally:
            executor.close()
        found[kv] = np.concatenate(rows)
    exact = quantized_logits(engines["none"], "none", ids, checkpoint)
    assert relative(found["none"], exact) < 3e-2
    error = relative(found["fp8"], exact)
    assert 1e-2 < error < 8e-2, "E4M3 has 4 significant bits"
    assert relative(found["none"], exact) < error


def test_a_cpu_profile_keeps_its_cache(engines: dict[str, Path], call: Call):
    code, said = call("verify", engines["fp8"], "--profile", "cpu")
    assert code == 0 and "probe on cpu" in said


def test_a_chip_without_fp8_refuses(checkpoint: Path, call: Call, tmp_path: Path):
    code, said = call("build", checkpoint, "-o", tmp_path / "e.llmc", "--target", "sm_80", "--kv", "fp8")
    assert code == 3
    assert "kv fp8 on sm_80" in said and "--kv none" in said
    assert not list(tmp_path.iterdir())
