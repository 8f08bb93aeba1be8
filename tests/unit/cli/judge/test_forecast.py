"""What is predicted stands beside what was measured, where facts of this machine exist, and only there."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from support.commands import Outcome
from support.engines import PicoEngine
from support.fakes.machine_facts import FACTS, WEIGHTS

from llmc.cli.common import console
from llmc.cli.facts import small_builds
from llmc.cli.judge.forecast import Kernels
from llmc.runtime.costs import measure
from llmc.runtime.costs.facts import keep_facts, load_facts
from llmc.runtime.machine import cpu_count
from llmc.runtime.progress import NO_PROGRESS

Call = Callable[..., Outcome]


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


def test_kernels_are_counted_where_a_build_compiles_them():
    kernels = Kernels(NO_PROGRESS)
    for name, total, unit in (("sm_90", 5, "kernels"), ("weights", 7, "B"), ("sm_80", 2, "kernels")):
        with kernels.stage(name, total, unit) as advance:
            advance(1)
    assert kernels.count == 7


def test_measuring_keeps_facts(call: Call, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(measure, "measure", lambda threads, advance: replace(FACTS, build=None, threads=threads))
    monkeypatch.setattr(small_builds, "measure", lambda advance: FACTS.build)
    found = call("doctor", "--measure", "--json")
    assert found.code == 0, found.err
    assert load_facts() == FACTS
    assert found.json["measured"]["build"]["formats"][1]["format"] == "int8"
    with_threads = f"with {console.counted(cpu_count(), 'thread')}"
    assert f"  measured on 2026-11-29 {with_threads}: 20.0 GB/s read of memory" in call("doctor").out


def test_facts_need_a_folder(call: Call, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("LLMC_CACHE", "")
    found = call("doctor", "--measure")
    assert (found.code, found.err) == (
        4,
        "llmc: cannot keep facts of this machine\n  found: no cache folder\n  try: LLMC_CACHE=FOLDER\n",
    )
