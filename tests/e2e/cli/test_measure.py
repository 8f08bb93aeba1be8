"""The commands that judge an engine, on the bundled checkpoint: eval, bench, doctor, passes."""

from __future__ import annotations

import difflib
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from support.commands import Outcome
from support.engines import PicoEngine
from support.paths import PICO as CHECKPOINT

Call = Callable[..., Outcome]


@pytest.fixture
def engine(pico_engine: PicoEngine) -> Path:
    return pico_engine("int8")


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("text") / "difflib.txt"
    shutil.copy(difflib.__file__, path)
    return path


def test_eval_measures_perplexity_and_distance(call: Call, engine: Path, text: Path):
    alone = call("eval", engine, "--text", text, "--max-tokens", 600, "--json").json
    assert set(alone) == {"tokens", "perplexity"}
    assert alone["tokens"] == 600
    assert 5 < alone["perplexity"] < 120
    outcome = call("eval", engine, "--text", text, "--max-tokens", 200, "--baseline", CHECKPOINT, "--json")
    assert set(outcome.json) == {"tokens", "perplexity", "kl_mean", "kl_p99", "top1_agreement"}
    assert 0 < outcome.json["kl_mean"] < 0.01
    assert outcome.json["top1_agreement"] > 0.9
    same = call("eval", engine, "--text", text, "--max-tokens", 100, "--baseline", engine)
    assert "KL mean 0.000000" in same.out


def test_eval_refuses_a_window_beyond_the_context(call: Call, engine: Path, text: Path):
    outcome = call("eval", engine, "--text", text, "--window", 513)
    assert outcome.code == 2
    assert "expected --window of at most 512, the context\n  found: 513" in outcome.err


def test_eval_windows_fit_a_shorter_baseline(call: Call, engine: Path, text: Path, tmp_path: Path):
    assert call("build", CHECKPOINT, "-o", tmp_path / "x.llmc", "--max-context", 32).code == 0
    arguments = ("eval", engine, "--text", text, "--max-tokens", 60, "--baseline", tmp_path / "x.llmc")
    assert call(*arguments, "--json").json["tokens"] == 60
    refused = call(*arguments, "--window", 33)
    assert (refused.code, refused.err) == (2, "llmc: expected --window of at most 32, the context\n  found: 33\n")


def test_bench_reports_every_speed(call: Call, engine: Path):
    arguments = ("bench", engine, "--prompt-tokens", 16, "--new-tokens", 4, "--batch", 2, "--repeat", 1)
    found = call(*arguments, "--json").json
    assert found["prefill_tokens_per_s"] > 0 < found["decode_tokens_per_s"]
    assert 7 * 2**20 < found["weight_bytes_per_step"] < 10 * 2**20
    assert found["memory_share"] > 0
    assert "prefill" in call(*arguments).out
    assert call("bench", engine, "--prompt-tokens", 600).code == 2


def test_doctor_says_which_profiles_fit(call: Call, engine: Path):
    found = call("doctor", engine, "--json").json
    assert found["engine"] == {"path": str(engine), "profile": "cpu", "fit": ["cpu"], "do_not_fit": {}}
    assert "CPUExecutionProvider" in found["providers"]
    assert "ONNX Runtime providers" in call("doctor").out


def test_passes_lists_the_pipeline(call: Call):
    rows = call("passes", CHECKPOINT, "--recipe", "cpu-int8", "--json").json["passes"]
    fired = {row["name"]: row["fired"] for row in rows}
    assert fired["MergeLinears"] == 8  # q, k and v of eight layers
    assert "nearest miss" in call("passes", CHECKPOINT).out
