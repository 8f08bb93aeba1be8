"""A build says what was predicted from facts of this machine beside what it took."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from support.commands import Outcome
from support.machine_facts import FACTS, MIB, WEIGHTS
from support.paths import PICO

from llmc.runtime.costs.facts import keep_facts

Call = Callable[..., Outcome]


def test_a_build_shows_what_facts_predict(call: Call, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("LLMC_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("LLMC_THREADS", raising=False)
    keep_facts(FACTS)
    found = call("build", PICO, "-o", tmp_path / "e.llmc", "--quantize", "int8", "--json").json
    predicted = found["predicted"]
    quantized = 2 * WEIGHTS
    assert predicted["stages"]["weights"] == pytest.approx(quantized * 1e-6, abs=1e-3)
    assert predicted["seconds"] == pytest.approx(quantized * 1e-6 + 0.5 + 8 * 0.25 + 0.125 + 0.25, abs=1e-3)
    assert predicted["peak_rss_bytes"] == 200 * MIB
    assert predicted["bytes"] == pytest.approx(found["bytes"], rel=0.01)
    text = call("build", PICO, "-o", tmp_path / "e.llmc", "--quantize", "int8").out
    assert text.splitlines()[-1].startswith(f"predicted / actual: {predicted['seconds']:.1f} / ")
    other = call("build", PICO, "-o", tmp_path / "e.llmc", "--quantize", "int4", "--json").json
    assert other["predicted"] is None  # a format that was not measured
