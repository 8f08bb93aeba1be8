"""Cut, forged and damaged engines met by a user at the command line: exit code and message (docs/faults.md, 1 to 8)."""

from __future__ import annotations

import json
import re
import struct
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


@pytest.mark.parametrize("kept", [0, 7, 100, 5000, 1_000_000, -1])
def test_a_cut_engine_is_refused_with_both_sizes(call: Call, pico_engine: PicoEngine, tmp_path: Path, kept: int):
    path, whole = tmp_path / "cut.llmc", pico_engine("int8").read_bytes()
    path.write_bytes(whole[:kept])
    code, text = call("run", path, "x")
    assert code == 3
    assert f"{len(whole[:kept])} bytes" in text
    assert any(f"{size} bytes" in text for size in (8, struct.unpack("<Q", whole[:8])[0], len(whole)))
    assert call("inspect", path)[0] == 3
    assert call("verify", path)[0] == 1


@pytest.mark.parametrize("length", [0, 1 << 31, 1 << 63, (1 << 64) - 1])
def test_a_header_length_is_not_believed(call: Call, pico_engine: PicoEngine, tmp_path: Path, length: int):
    path = tmp_path / "e.llmc"
    path.write_bytes(struct.pack("<Q", length) + pico_engine("int8").read_bytes()[8:])
    for command in (("run", path, "x"), ("inspect", path)):
        code, text = call(*command)
        assert (code, f"{length}" in text) == (3, True)


@pytest.mark.parametrize(
    ("entry", "said"),
    [
        ({"data_offsets": [2**64 - 8, 2**64]}, "fewer than 2^63 bits and bytes"),
        ({"shape": [2**32, 2**32]}, "fewer than 2^63 bits and bytes"),
        ({"shape": [0, 2**62]}, "fewer than 2^63 bits and bytes"),
        ({"shape": [-1, 5]}, "non-negative integers"),
        ({"data_offsets": [766448, 963056]}, "tensors that do not overlap"),
        ({"dtype": "F3"}, "a dtype of the safetensors format"),
        ({"dtype": "I8"}, "as U8 of shape [256, 768]\n  found: int8"),
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
        assert (code, "a graph of operators this llmc knows\n  found: operator 'PyOp'" in text) == (3, True)
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


@pytest.mark.parametrize("where", ["header", "section"])
def test_run_refuses_a_flipped_bit_of_what_it_reads_at_every_load(
    call: Call, pico_engine: PicoEngine, tmp_path: Path, where: str
):
    raw = bytearray(pico_engine("int8").read_bytes())
    at = 5000
    if where == "section":
        with EngineFile.open(pico_engine("int8")) as engine:
            at = raw.index(engine.section("profiles/cpu/graph.onnx")) + 100
    raw[at] ^= 4
    path = tmp_path / "e.llmc"
    path.write_bytes(raw)
    assert call("run", path, "x")[0] == 3
    code, text = call("verify", path)
    assert (code, where in text) == (1, True)
