"""Forged engines whose digests are right, met by a user at the command line (docs/faults.md, 3 to 7)."""

from __future__ import annotations

import json
import re
from pathlib import Path

import onnx
import pytest
from support.commands import DOWN, Call, Json, edit_engine
from support.engines import PicoEngine, forge

from llmc.runtime.engine_file.file import EngineFile
from llmc.runtime.engine_file.manifest import Manifest


@pytest.fixture
def call(capsys: pytest.CaptureFixture[str]) -> Call:
    return Call(capsys)


@pytest.mark.parametrize(
    ("entry", "said"),
    [
        ({"data_offsets": [2**64 - 8, 2**64]}, "fewer than 2^63 bits and bytes"),
        ({"shape": [2**32, 2**32]}, "fewer than 2^63 bits and bytes"),
        ({"shape": [0, 2**62]}, "fewer than 2^63 bits and bytes"),
        ({"shape": [-1, 5]}, "non-negative integers"),
        ({"data_offsets": [766448, 963056]}, "tensors that do not overlap"),
        ({"dtype": "F3"}, "a dtype of the safetensors format"),
        ({"dtype": "I8"}, "int8.nbits'\n  found: int8"),
    ],
)
def test_forged_entries_of_an_engine_are_refused(
    call: Call, pico_engine: PicoEngine, tmp_path: Path, entry: Json, said: str
):
    path = edit_engine(pico_engine("int8"), tmp_path / "e.llmc", lambda header: header[DOWN].update(entry))
    code, text = call("run", path, "x")
    assert code == 3
    assert said in text and DOWN in text


def test_a_tensor_twice_in_an_engine_is_named(call: Call, pico_engine: PicoEngine, tmp_path: Path):
    def twice(text: str) -> str:
        entry = re.search(rf'"{DOWN}":{{[^}}]*}},', text)
        assert entry is not None
        return text.replace(entry[0], entry[0] * 2)

    path = edit_engine(pico_engine("int8"), tmp_path / "e.llmc", lambda header: None, twice)
    assert f"found: the key '{DOWN}' twice in one object" in call("run", path, "x")[1]


def test_an_unknown_operator_is_refused_and_inspect_still_tells(call: Call, pico_engine: PicoEngine, tmp_path: Path):
    section = "profiles/cpu/graph.onnx"
    with EngineFile.open(pico_engine("int8")) as engine:
        model = onnx.load_from_string(engine.section(section))
    model.graph.node[3].op_type = "PyOp"
    path = forge(pico_engine("int8"), tmp_path / "e.llmc", sections={section: model.SerializeToString()})
    for command in (("run", path, "x"), ("verify", path)):
        code, text = call(*command)
        assert (code, f"operators this llmc knows in {section} of {path}\n  found: operator 'PyOp'" in text) == (
            3,
            True,
        )
    assert call("inspect", path)[0] == 0


def test_a_graph_that_fails_while_running_is_the_engines_fault(call: Call, pico_engine: PicoEngine, tmp_path: Path):
    """Sound by every check: but the cache is smaller than the probe."""

    def shorten(manifest: Manifest) -> Manifest:
        document = json.loads(manifest.to_json())
        document["profiles"]["cpu"]["max_context"] = 4
        return Manifest.from_json(json.dumps(document), what="forged")

    path = forge(pico_engine("int8"), tmp_path / "e.llmc", manifest=shorten)
    code, text = call("verify", path)
    assert (code, "a bug in llmc" in text) == (3, False)
