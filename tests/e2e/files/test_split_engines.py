"""The bundled checkpoint as an engine of several files: the same numbers, tokens and digests as in one."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors import safe_open
from support.commands import Outcome
from support.paths import PICO

import llmc
from llmc.runtime.engine_file.bind import evaluate_weight, from_json
from llmc.runtime.engine_file.file import EngineFile, verify_engine
from llmc.runtime.errors import RecipeError

SIZE = 3_000_000


@pytest.fixture(scope="module")
def split(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return llmc.build(PICO, tmp_path_factory.mktemp("split") / "p.llmc", quantize="int8", max_shard_size="3M")


def test_bytes_tokens_and_logits_are_those_of_one_file(split: Path, pico_engine: Any):
    whole = pico_engine("int8")
    with verify_engine(split) as one, EngineFile.open(whole) as other:
        assert len(one.parts) == 4 and all(part.bytes <= SIZE for part in one.parts)
        assert one.manifest.content_digest == other.manifest.content_digest
        assert list(one.tensors) == list(other.tensors)
        for name in other.tensors:
            assert one.tensor(name).tobytes() == other.tensor(name).tobytes()
        assert {name: one.section(name) for name in one.sections} == {n: other.section(n) for n in other.sections}
    with llmc.load(split) as one, llmc.load(whole) as other:
        ids = one.generate("def main(", max_tokens=12, temperature=0).token_ids
        assert ids == other.generate("def main(", max_tokens=12, temperature=0).token_ids
        np.testing.assert_array_equal(one.logits(list(range(40))), other.logits(list(range(40))))
        assert one.info.content_digest == other.info.content_digest


def test_its_files_are_all_safetensors_files(split: Path):
    names: list[str] = []
    for one in sorted(split.parent.iterdir()):
        with safe_open(one, "np") as file:
            names += [name for name in file.keys() if not name.startswith("__llmc__/")]  # noqa: SIM118
    with EngineFile.open(split) as engine:
        assert sorted(names) == sorted(engine.tensors)


def test_profiles_of_ranks_read_several_files_too(tmp_path: Path):
    given: Any = {"quantize": "int8", "parallel": ["tp1", "tp2"]}
    whole = llmc.build(PICO, tmp_path / "whole.llmc", **given)
    path = llmc.build(PICO, tmp_path / "p.llmc", **given, max_shard_size="2M")
    with verify_engine(path) as one, EngineFile.open(whole) as other:
        assert one.manifest.content_digest == other.manifest.content_digest
        assert [*one.manifest.required_features] == [*other.manifest.required_features, "shards"]
        assert len(one.parts) > 4 and all(part.bytes <= 2_000_000 for part in one.parts)
        for rank in ("cpu-tp2.rank-0", "cpu-tp2.rank-1"):
            assert one.profile(rank) == other.profile(rank)
            for name, expr in one.profile(rank).weights.items():
                left, right = (evaluate_weight(from_json(expr), each.tensor, initializer=name) for each in (one, other))
                assert left.tobytes() == right.tobytes()


def test_a_size_that_holds_the_whole_changes_no_byte(pico_engine: Any, tmp_path: Path):
    path = llmc.build(PICO, tmp_path / "p.llmc", quantize="int8", max_shard_size=0.5)
    assert path.read_bytes() == pico_engine("int8").read_bytes()
    assert os.listdir(tmp_path) == ["p.llmc"]


def test_a_size_that_is_too_small_is_refused_with_the_least(tmp_path: Path):
    with pytest.raises(RecipeError, match=r"cannot split the engine into at most 256 files of 100000 bytes") as refusal:
        llmc.build(PICO, tmp_path / "p.llmc", quantize="int8", max_shard_size="100K")
    least = str(refusal.value).rpartition("--max-shard-size ")[2].removesuffix(" or more")
    assert os.listdir(tmp_path) == []
    path = llmc.build(PICO, tmp_path / "p.llmc", quantize="int8", max_shard_size=least)
    with verify_engine(path) as engine:
        assert max(part.bytes for part in engine.parts) <= int(least.removesuffix("K")) * 1000
    for wrong in ("0", -1, "big"):
        with pytest.raises(RecipeError, match="expected a size of files, such as 500M, 4GB"):
            llmc.build(PICO, tmp_path / "p.llmc", max_shard_size=wrong)


@pytest.fixture
def build(call: Any, tmp_path: Path) -> Any:
    return lambda *more: call("build", PICO, "-o", tmp_path / "e.llmc", "--quantize", "int4", *more)


def test_the_commands_count_all_files(build: Any, call: Any, tmp_path: Path):
    built: Outcome = build("--max-shard-size", "3M", "--json", "--report", tmp_path / "r.json")
    files = [Path(one) for one in built.json["files"]]
    assert files[0].name == "e.llmc" and built.json["path"] == str(files[0])
    assert {one.name for one in files} == {*os.listdir(tmp_path)} - {"r.json"} and len(files) == 2
    assert built.json["bytes"] == sum(one.stat().st_size for one in files)
    assert json.loads((tmp_path / "r.json").read_text())["files"] == built.json["files"]
    facts = call("inspect", files[0], "--json").json
    assert facts["bytes"] == built.json["bytes"]
    assert [one["name"] for one in facts["files"]] == [one.name for one in files]
    assert sum(one["tensors"] for one in facts["files"]) == facts["tensors"]
    assert call("verify", files[0], "--json").json["files"] == 2
    old = files[1]
    assert "of 3 files in" in build("--max-shard-size", "2M", "--report", tmp_path / "r.md", "-v").out
    assert " in 3 files, built in " in (tmp_path / "r.md").read_text()
    assert not old.exists()


def test_a_further_file_is_no_output_and_no_engine(split: Path, call: Any):
    second = sorted(split.parent.iterdir())[0]
    before = second.read_bytes()
    outcome = call("build", PICO, "-o", second)
    assert outcome.code == 2 and "that is not an engine" in outcome.err
    for command in (("run", second, "def"), ("verify", second), ("bench", second), ("inspect", second)):
        outcome = call(*command)
        assert outcome.code == 3 and f"try: the first one, {split}\n" in outcome.err
    assert second.read_bytes() == before
