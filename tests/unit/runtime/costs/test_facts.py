"""Facts of a machine come back as they were kept; those of another machine, or damaged, are as absent."""

from __future__ import annotations

import json
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest

from llmc.runtime.costs.facts import BuildFacts, CpuFacts, FormatFacts, ProductFacts, facts_path, keep_facts, load_facts
from llmc.runtime.files.records import plain
from llmc.runtime.files.sealed import read_sealed, write_sealed
from llmc.runtime.machine import cpu_name

BUILD = BuildFacts(1.0, 0.01, 0.02, 0.3, 0.4, 1e-9, 2e-9, 3e-9, 400 << 20, (FormatFacts("int4", 1e-9, 2e-9),))
FACTS = CpuFacts(
    llmc=version("llmc-engine"),
    cpu=cpu_name(),
    threads=3,
    date="2026-11-29",
    read_bytes_per_s=2e10,
    products=(ProductFacts(4, 32, (1e-11, 2e-11, 3e-11, 9e-11, 65e-11)),),
    product_s=1e-6,
    attention_head_s=1e-6,
    attention_byte_s=1e-10,
    attention_operation_s=1e-11,
    element_s={"norm": 1e-9, "activation": 1e-9, "other": 1e-9},
    node_s=1e-6,
    step_s=1e-5,
    logit_s=1e-10,
    build=BUILD,
)


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("LLMC_CACHE", str(tmp_path))
    return tmp_path


@pytest.mark.parametrize("facts", [FACTS, replace(FACTS, build=None)], ids=["builds", "no builds"])
def test_facts_come_back(facts: CpuFacts):
    path = keep_facts(facts)
    assert path is not None and path == facts_path(facts.cpu, 3)
    assert load_facts(3) == facts


def test_facts_of_a_format_are_found_by_name():
    assert BUILD.named("int4").probe_weight_s == 2e-9
    with pytest.raises(KeyError):
        BUILD.named("fp8")


def test_there_are_none_before_a_measurement_nor_for_other_threads(monkeypatch: pytest.MonkeyPatch):
    assert load_facts(3) is None
    keep_facts(FACTS)
    assert load_facts(2) is None
    monkeypatch.setenv("LLMC_THREADS", "3")
    assert load_facts() == FACTS


def test_there_are_none_without_a_cache_folder(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("LLMC_CACHE", "")
    assert keep_facts(FACTS) is None and load_facts(3) is None


def change(**changes: Any) -> None:
    path = facts_path(FACTS.cpu, 3)
    assert path is not None
    write_sealed(path, {**read_sealed(path), **changes})


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"cpu": "another CPU"}, "are of cpu another CPU, not "),
        ({"threads": 4}, "are of threads 4, not 3"),
        ({"llmc": "0.0.1"}, "are of llmc 0.0.1, not "),
        ({"node_s": -1.0}, "are damaged"),
        ({"products": [{"bits": 4, "block": 32, "weight_s": [1e-9]}]}, "are damaged"),
        ({"node_s": "fast"}, "are damaged"),
        ({"unknown": 1}, "are damaged"),
    ],
)
def test_facts_that_do_not_hold_here_are_not_used(changes: dict[str, Any], said: str):
    keep_facts(FACTS)
    change(**changes)
    notes: list[str] = []
    assert load_facts(3, notes.append) is None
    [note] = notes
    assert said in note and "llmc doctor --measure" in note


def test_a_file_that_was_changed_by_hand_is_damaged(cache: Path):
    path = keep_facts(FACTS)
    assert path is not None
    path.write_bytes(path.read_bytes().replace(b'"threads":3', b'"threads":2'))
    notes: list[str] = []
    assert load_facts(3, notes.append) is None
    assert notes == [f"facts of this machine in {path} are damaged: llmc doctor --measure makes new ones"]


def test_they_are_json_without_secrets():
    assert json.loads(json.dumps(plain(FACTS)))["build"]["formats"][0]["format"] == "int4"
