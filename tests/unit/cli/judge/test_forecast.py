"""What is predicted stands beside what was measured, where facts of this machine exist, and only there."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path

import pytest
from support.commands import Outcome
from support.engines import PicoEngine
from support.paths import PICO

from llmc.cli.facts import small_builds
from llmc.runtime.costs import measure
from llmc.runtime.costs.facts import BuildFacts, CpuFacts, FormatFacts, ProductFacts, keep_facts, load_facts
from llmc.runtime.machine import cpu_count, cpu_name

Call = Callable[..., Outcome]
MIB = 1 << 20
FACTS = CpuFacts(
    llmc=version("llmc-engine"),
    cpu=cpu_name(),
    threads=cpu_count(),
    date="2026-11-29",
    read_bytes_per_s=2e10,
    products=(ProductFacts(8, 32, (1e-10,) * 5),),
    product_s=0.0,
    attention_head_s=0.0,
    attention_byte_s=0.0,
    attention_operation_s=0.0,
    element_s={"norm": 0.0, "activation": 0.0, "other": 0.0},
    node_s=0.0,
    step_s=0.0,
    logit_s=0.0,
    build=BuildFacts(
        *(1.0, 0.25, 0.5, 0.125, 0.25, 0.0, 0.0, 0.0),
        200 * MIB,
        (FormatFacts("none", 0.0, 0.0), FormatFacts("int8", 1e-6, 0.0)),
    ),
)
WEIGHTS = 8 * (512 * 256 + 256 * 256 + 3 * 768 * 256) + 4096 * 256
"""Those that a step of PICO reads: of its linears, and of the head."""


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("LLMC_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("LLMC_THREADS", raising=False)
    return tmp_path


def bench(engine: Path, *flags: object) -> tuple[object, ...]:
    return ("bench", engine, "-p", 8, "-n", 3, "--repeat", 1, *flags)


def test_without_facts_nothing_is_predicted(call: Call, pico_engine: PicoEngine):
    engine = pico_engine("int8")
    assert call(*bench(engine, "--json")).json["predicted"] is None
    assert "predicted" not in call(*bench(engine)).out
    assert call("doctor", "--json").json["measured"] is None


def test_a_bench_shows_what_facts_predict(call: Call, pico_engine: PicoEngine):
    keep_facts(FACTS)
    engine, step = pico_engine("int8"), WEIGHTS * 1e-10
    found = call(*bench(engine, "--json")).json
    assert found["predicted"] == {
        "ttft": pytest.approx(step, abs=1e-4),
        "prefill": pytest.approx(8 / step, rel=1e-4),
        "decode": pytest.approx(1 / step, rel=1e-4),
    }
    text = call(*bench(engine)).out
    [line] = [line for line in text.splitlines() if "predicted / actual" in line]
    assert line.startswith(f"  predicted / actual: prefill {8 / step:.1f} / ")
    assert f"decode {1 / step:.1f} / " in line
    # two prompts are read one after the other, and the first makes a token in between
    pair = call(*bench(engine, "-b", "1,2", "--json")).json["rows"][1]["predicted"]
    assert pair["ttft"] == pytest.approx(3 * step, abs=1e-4)
    assert pair["decode"] == pytest.approx(2 / step, rel=1e-4)
    assert "decode predicted" in call(*bench(engine, "-b", "1,2")).out


def test_facts_of_another_number_of_threads_or_machine_are_not_used(call: Call, pico_engine: PicoEngine):
    keep_facts(FACTS)
    assert call(*bench(pico_engine("int8"), "--threads", cpu_count() + 1, "--json")).json["predicted"] is None
    keep_facts(replace(FACTS, llmc="0.0.0"))
    found = call(*bench(pico_engine("int8"), "--json"))
    assert found.json["predicted"] is None
    assert "are of llmc 0.0.0, not" in found.err


def test_a_build_shows_what_facts_predict(call: Call, tmp_path: Path, checked_here: None):
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


def test_measuring_keeps_facts(call: Call, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(measure, "measure", lambda threads, advance: replace(FACTS, build=None, threads=threads))
    monkeypatch.setattr(small_builds, "measure", lambda advance: FACTS.build)
    found = call("doctor", "--measure", "--json")
    assert found.code == 0, found.err
    assert load_facts() == FACTS
    assert found.json["measured"]["build"]["formats"][1]["format"] == "int8"
    threads = cpu_count()
    assert f"  measured on 2026-11-29 with {threads} threads: they read 20.0 GB/s of memory" in call("doctor").out


def test_facts_need_a_folder(call: Call, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("LLMC_CACHE", "")
    found = call("doctor", "--measure")
    assert (found.code, found.err) == (
        4,
        "llmc: cannot keep facts of this machine\n  found: no cache folder\n  try: LLMC_CACHE=FOLDER\n",
    )
