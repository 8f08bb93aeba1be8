"""The commands that judge an engine, on the bundled checkpoint: eval and bench."""

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


def test_bench_reports_every_speed(call: Call, engine: Path):
    arguments = ("bench", engine, "--prompt-tokens", 16, "--new-tokens", 4, "--batch", 2, "--repeat", 1)
    found = call(*arguments, "--json").json
    assert found["prefill_tokens_per_s"] > 0 < found["decode_tokens_per_s"]
    assert 7 * 2**20 < found["weight_bytes_per_step"] < 10 * 2**20
    assert found["memory_share"] > 0
    assert "prefill" in call(*arguments).out
    assert call("bench", engine, "--prompt-tokens", 600).code == 2
