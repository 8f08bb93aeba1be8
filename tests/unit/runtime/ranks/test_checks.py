"""Forged programs of ranks are refused by message, before a process is started or weights are loaded."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from support.engines import PicoEngine, forge

from llmc.runtime.cpu.executor import CpuExecutor
from llmc.runtime.engine_file.file import EngineFile
from llmc.runtime.engine_file.manifest import Manifest
from llmc.runtime.engine_file.ranks import split_of
from llmc.runtime.errors import EngineError, LlmcError
from llmc.runtime.ranks.checks import check_programs

Json = dict[str, Any]


@pytest.fixture(scope="module")
def engine(pico_engine: PicoEngine) -> Path:
    return pico_engine("int4", parallel="tp2,pp2,tp2-pp2")


def section_of(path: Path, label: str, file: str) -> str:
    with EngineFile.open(path) as engine:
        return engine.profile(label).file(file)


def changed(path: Path, target: Path, section: str, change: Callable[[Json], object]) -> Path:
    with EngineFile.open(path) as engine:
        document = json.loads(engine.section(section))
    change(document)
    return forge(path, target, sections={section: json.dumps(document).encode()})


def check(path: Path, profile: str) -> None:
    with EngineFile.open(path) as engine:
        check_programs(engine, profile, split_of(engine.profile(profile), str(path)))


def step(program: Json, op: str) -> Json:
    """The last step of this kind, whose change others before it do not hide."""
    return [one for one in program["steps"] if one["op"] == op][-1]


def rename(program: Json, kind: str, **more: Any) -> None:
    step(program, kind).update(more)


def reshape(program: Json, op: str, key: str) -> None:
    (name,) = step(program, op)[key]
    program["values"][name][-1] = "7"


def test_the_programs_of_a_build_fit(engine: Path):
    for profile in ("cpu-tp2", "cpu-pp2", "cpu-tp2-pp2"):
        check(engine, profile)


FORGED: dict[str, tuple[str, Callable[[Json], object], str]] = {
    "unknown operator": (
        "cpu-tp2.rank-1",
        lambda it: rename(it, "AllReduce", op="AllToAll"),
        r"expected step \d+ \(AllToAll\) in .*program\.json.*\n  found: an unknown operator",
    ),
    "wrong peer": (
        "cpu-pp2.rank-0",
        lambda it: rename(it, "Send", peer=0),
        r"expected step \d+ \(Send\) in .*\n  found: peer 0 of rank 0 in pp2",
    ),
    "a peer that is not there": (
        "cpu-pp2.rank-1",
        lambda it: rename(it, "Recv", peer=1 << 40),
        r"expected step 0 \(Recv\) in .*\n  found: peer 1099511627776",
    ),
    "another peer of the other stage": (
        "cpu-tp2-pp2.rank-0",
        lambda it: rename(it, "Send", peer=3),
        r"expected ranks that exchange the same values in profile 'cpu-tp2-pp2' .*\n  found: rank 0 alone at step",
    ),
    "missing segment": (
        "cpu-tp2.rank-0",
        lambda it: rename(it, "Run", segment="segment-999.onnx"),
        r"expected step \d+ \(Run\) in .*\n  found: no file 'segment-999.onnx'",
    ),
    "unknown value": (
        "cpu-tp2.rank-0",
        lambda it: rename(it, "AllReduce", inputs=["nothing"]),
        r"expected step \d+ \(AllReduce\) in .*\n  found: no value 'nothing'",
    ),
    "two inputs": (
        "cpu-tp2.rank-0",
        lambda it: rename(it, "AllReduce", inputs=step(it, "AllReduce")["inputs"] * 2),
        r"found: 2 inputs and 1 outputs",
    ),
    "a sum of another shape": (
        "cpu-tp2.rank-0",
        lambda it: reshape(it, "AllReduce", "inputs"),
        r"expected step \d+ \(AllReduce\) in .*\n  found: a sum ",
    ),
    "a gather of another shape": (
        "cpu-tp2.rank-0",
        lambda it: reshape(it, "AllGather", "outputs"),
        r"expected step \d+ \(AllGather\) in .*\n  found: \[",
    ),
    "sizes of three shards": (
        "cpu-tp2.rank-0",
        lambda it: rename(it, "AllGather", sizes=[1, 2, 3]),
        r"expected step \d+ \(AllGather\) in .*\n  found: sizes \[1, 2, 3\] of 2 shards",
    ),
    "an axis that is not there": (
        "cpu-tp2.rank-0",
        lambda it: rename(it, "AllGather", axis=9),
        r"expected step \d+ \(AllGather\) in ",
    ),
    "a negative shape": (
        "cpu-tp2.rank-0",
        lambda it: it["values"].update(logits=["R", "-4096"]),
        r"expected a shape for value 'logits' in .*\n  found: R, -4096",
    ),
    "a shape beyond all memory": (
        "cpu-tp2.rank-0",
        lambda it: it["values"].update(logits=["R", *["1000000"] * 9]),
        r"expected a shape for value 'logits' in .*\n  found: R, 1000000",
    ),
    "an unknown key": ("cpu-tp2.rank-0", lambda it: it.update(more=1), r"expected only known keys in "),
    "a message of another shape": (
        "cpu-pp2.rank-1",
        lambda it: reshape(it, "Recv", "outputs"),
        r"expected ranks that exchange the same values .*\n  found: rank 0 alone at step 1 \(Send\)",
    ),
    "a collective less": (
        "cpu-tp2-pp2.rank-0",
        lambda it: it["steps"].remove(step(it, "AllReduce")),
        r"expected ranks that exchange the same values .*\n  found: rank \d alone at step \d+ \((All|Reduce)",
    ),
    "ranks that wait for each other": (
        "cpu-pp2.rank-0",
        lambda it: it["steps"].insert(0, {"op": "Recv", "peer": 1, "outputs": [next(iter(it["values"]))]}),
        r"found: rank 0 alone at step 0 \(Recv\)",
    ),
}


@pytest.mark.parametrize("case", FORGED)
def test_forged_programs(engine: Path, tmp_path: Path, case: str):
    label, change, message = FORGED[case]
    path = changed(engine, tmp_path / "e.llmc", section_of(engine, label, "program.json"), change)
    with pytest.raises(EngineError, match=message):
        check(path, label.partition(".")[0])


def load_rank(path: Path, label: str) -> None:
    with EngineFile.open(path) as engine:
        CpuExecutor(engine, label, threads=1, max_batch=1, checked=lambda: pytest.fail("weights would be loaded"))


RANKS: dict[str, tuple[Callable[[Json], object], str]] = {
    "a cache that is no number": (
        lambda it: it["caches"].update(x=it["caches"]["0"]),
        r"expected caches by number of layer in profiles/cpu-tp2/rank-0/profile\.json",
    ),
    "an unknown key": (lambda it: it.update(more=1), r"expected only known keys in profiles/cpu-tp2/rank-0/profile"),
    "a program that is not there": (lambda it: it.update(graph="nothing"), r"cannot find section 'nothing'"),
    "packed bytes as a text": (
        lambda it: it["needs"].update(packed_bytes="9"),
        r"expected packed_bytes as a whole number",
    ),
    "no memory for it": (
        lambda it: it["needs"].update(packed_bytes=1 << 60),
        r"cannot load .*: it needs 1152921504\.6 GB of memory",
    ),
}


@pytest.mark.parametrize("case", RANKS)
def test_forged_records_of_ranks(engine: Path, tmp_path: Path, case: str):
    change, message = RANKS[case]
    path = changed(engine, tmp_path / "e.llmc", "profiles/cpu-tp2/rank-0/profile.json", change)
    with pytest.raises(LlmcError, match=message):
        load_rank(path, "cpu-tp2.rank-0")


def test_a_cache_of_a_layer_that_the_graphs_do_not_have(engine: Path, tmp_path: Path):
    def change(it: Json) -> None:
        it["caches"]["99"] = it["caches"]["0"]

    path = changed(engine, tmp_path / "e.llmc", "profiles/cpu-tp2/rank-0/profile.json", change)
    with EngineFile.open(path) as opened, pytest.raises(EngineError, match=r"expected a graph of 9 layers"):
        CpuExecutor(opened, "cpu-tp2.rank-0", threads=1, max_batch=1)


MANIFESTS: dict[str, tuple[Json, str]] = {
    "three shards on two ranks": (
        {"split": "tp3"},
        r"expected 'cpu-tp3' with 3 ranks in x: .*\n  found: 2 ranks",
    ),
    "another split": ({"split": "pp2"}, r"expected 'cpu-pp2' with 2 ranks"),
    "no split": ({"split": "two"}, r"expected a split in .*\n  found: 'two': a split is"),
    "no ranks": ({"ranks": []}, r"expected 'cpu-tp2' with 2 ranks .*\n  found: 0 ranks"),
    "too many ranks": ({"split": "tp2-pp999"}, r"expected a split in .*\n  found: degrees 2 and 999"),
    "ranks without a split": ({"split": None}, r"expected a split in "),
    "a rank that is no text": ({"ranks": [1, 2]}, r"expected a string in "),
}


@pytest.mark.parametrize("case", MANIFESTS)
def test_forged_splits_are_refused_when_the_file_is_opened(engine: Path, case: str):
    change, message = MANIFESTS[case]
    with EngineFile.open(engine) as opened:
        document = json.loads(opened.manifest.to_json())
    document["profiles"]["cpu-tp2"].update(change)
    with pytest.raises(EngineError, match=message):
        Manifest.from_json(json.dumps(document), what="x")


def test_a_section_of_a_rank_that_is_missing_or_damaged(engine: Path, tmp_path: Path):
    section = "profiles/cpu-tp2/rank-1/profile.json"
    missing = forge(engine, tmp_path / "a.llmc", drop=[section])
    with pytest.raises(EngineError, match=rf"cannot find section '{section}'"):
        check(missing, "cpu-tp2")
    damaged = tmp_path / "b.llmc"
    raw = bytearray(engine.read_bytes())
    with EngineFile.open(engine) as opened:
        at = raw.index(opened.section(section))
    raw[at + 20] ^= 1
    damaged.write_bytes(raw)
    with pytest.raises(EngineError, match=rf"expected section '{section}' of .* to match its digest"):
        check(damaged, "cpu-tp2")
    check(damaged, "cpu-pp2")
