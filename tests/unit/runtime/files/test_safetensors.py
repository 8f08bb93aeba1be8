"""Proves the safetensors header reader against the safetensors library, and its refusals by their messages."""

from __future__ import annotations

import json
import os
import socket
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors import numpy as library

from llmc.runtime.errors import CheckpointError
from llmc.runtime.files.safetensors import Header, TensorInfo, read_header

DTYPES = {"F32": "<f4", "F16": "<f2", "I64": "<i8", "U8": "u1", "BOOL": "?", "I16": "<i2", "F64": "<f8", "U32": "<u4"}
NAMES = st.text(st.characters(exclude_categories=["C", "Z"]), min_size=1, max_size=20).filter(
    lambda name: name != "__metadata__" and name.isprintable()
)
ARRAYS = st.dictionaries(
    NAMES, st.tuples(st.sampled_from(sorted(DTYPES)), st.lists(st.integers(0, 4), max_size=3)), min_size=1, max_size=6
)
LAX = settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)


def test_a_text_is_called_so(tmp_path: Path):
    (tmp_path / "x").write_text("version: 1\nquantize: {default: int8}\n")
    with pytest.raises(CheckpointError, match=r"^expected .* as a safetensors file\n  found: a text file"):
        read_header(tmp_path / "x", error=CheckpointError)


def write(path: Path, header: object, data: bytes = b"", *, length: int | None = None) -> Path:
    raw = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes((len(raw) if length is None else length).to_bytes(8, "little") + raw + data)
    return path


def entry(begin: int, end: int, shape: Sequence[float] | None = None, dtype: str = "U8") -> dict[str, object]:
    return {"dtype": dtype, "shape": [end - begin] if shape is None else shape, "data_offsets": [begin, end]}


def read(path: Path) -> Header:
    return read_header(path, error=CheckpointError)


def refusal(path: Path) -> str:
    with pytest.raises(CheckpointError) as caught:
        read(path)
    assert str(path) in str(caught.value)
    return str(caught.value)


@LAX
@given(ARRAYS, st.dictionaries(st.text(max_size=5), st.text(max_size=5)))
def test_agrees_with_the_library(
    tmp_path: Path, kinds: dict[str, tuple[str, list[int]]], metadata: dict[str, str]
) -> None:
    rng = np.random.default_rng(0)
    arrays = {
        name: rng.integers(0, 2, shape).astype(DTYPES[dtype]).reshape(shape) for name, (dtype, shape) in kinds.items()
    }
    path = tmp_path / "a.safetensors"
    library.save_file(arrays, path, metadata=metadata or None)
    header = read(path)
    assert header.metadata == metadata
    assert header.tensors.keys() == arrays.keys()
    raw = path.read_bytes()
    for name, info in header.tensors.items():
        assert (info.dtype, list(info.shape)) == kinds[name]
        assert raw[info.offset : info.offset + info.nbytes] == arrays[name].tobytes()


@LAX
@given(st.data())
def test_a_changed_file_gives_the_error_or_what_the_library_reads(tmp_path: Path, data: st.DataObject) -> None:
    path = tmp_path / "m.safetensors"
    library.save_file({"a": np.arange(6, dtype="<f4").reshape(2, 3), "b": np.zeros(4, "u1")}, path, metadata={"k": "v"})
    raw = bytearray(path.read_bytes())
    for _ in range(data.draw(st.integers(1, 4))):
        at = data.draw(st.integers(0, len(raw) - 1))
        match data.draw(st.sampled_from(["set", "cut", "insert"])):
            case "set":
                raw[at] = data.draw(st.integers(0, 255))
            case "cut":
                del raw[at : at + data.draw(st.integers(1, 8))]
            case "insert":
                raw[at:at] = data.draw(st.binary(min_size=1, max_size=8))
        if not raw:
            break
    path.write_bytes(raw)
    try:
        header = read(path)
    except CheckpointError:
        return
    seen = {name: list(array.shape) for name, array in library.load(bytes(raw)).items()}
    assert seen == {name: list(info.shape) for name, info in header.tensors.items()}


@given(st.binary(max_size=200))
@LAX
def test_noise_gives_the_error(tmp_path: Path, raw: bytes) -> None:
    path = tmp_path / "n.safetensors"
    path.write_bytes(raw)
    with pytest.raises(CheckpointError):
        read(path)


def test_every_truncation_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "t.safetensors"
    library.save_file({"a": np.zeros(9, "<f4"), "b": np.zeros(3, "<f4")}, path)
    raw = path.read_bytes()
    for length in range(len(raw)):
        path.write_bytes(raw[:length])
        assert f"{length} bytes" in refusal(path) or length < 8


@pytest.mark.parametrize("length", [0, 1, 1 << 31, 1 << 32, 1 << 63, (1 << 64) - 1])
def test_header_lengths(tmp_path: Path, length: int) -> None:
    text = refusal(write(tmp_path / "l.safetensors", {"a": entry(0, 4)}, bytes(4), length=length))
    assert str(length) in text or length < 2


@pytest.mark.parametrize(
    ("tensors", "message"),
    [
        ({"a": entry(0, 4), "b": entry(2, 8)}, "'b' begins at byte"),
        ({"a": entry(0, 4), "b": entry(0, 8)}, "'a' ends at byte"),
        ({"a": entry(0, 3), "b": entry(4, 8)}, "between 'a' and 'b' belong to no tensor"),
        ({"a": entry(1, 8)}, "between the header and 'a' belong to no tensor"),
        ({"a": entry(0, 7)}, "1 more than the tensors cover"),
        ({"a": entry(0, 9)}, "where 'a' ends"),
        ({}, "8 more than the tensors cover"),
        ({"a": entry(0, 8, [7])}, "7 bytes, as dtype U8 and shape [7] say"),
        ({"a": entry(0, 8, [1 << 62, 4], "F32")}, "fewer than 2^63 bits"),
        ({"a": entry(0, 8), "b": entry(8, 8, [0, 1 << 62])}, "fewer than 2^63 bits"),
        ({"a": entry(0, 8, [-8])}, "non-negative integers"),
        ({"a": entry(0, 8, [8.0])}, "non-negative integers"),
        ({"a": entry(0, 8, [True, 8])}, "non-negative integers"),
        ({"a": entry(0, 8, [1] * 40)}, "at most 32 non-negative"),
        ({"a": entry(8, 0, [8])}, "8 bytes, as dtype U8"),
        ({"a": {**entry(0, 8), "data_offsets": [0, 8, 8]}}, "two non-negative integers"),
        ({"a": {**entry(0, 8), "data_offsets": [-1, 8]}}, "two non-negative integers"),
        ({"a": {**entry(0, 8), "data_offsets": [1 << 63, (1 << 63) + 8]}}, "fewer than 2^63"),
        ({"a": entry(0, 8, dtype="BF61")}, "'BF61' (did you mean 'BF16'?)"),
        ({"a": entry(0, 8, dtype="F4", shape=[15])}, "60 bits of dtype F4"),
        ({"a": {**entry(0, 8), "shap": 1}}, "the key 'shap' (did you mean 'shape'?)"),
        ({"a": {"dtype": "U8", "shape": [8]}}, "only ['dtype', 'shape']"),
        ({"a": [0, 8]}, "an entry with dtype, shape and data_offsets"),
        ({"": entry(0, 8)}, "1 to 1024 printable characters"),
        ({"a\nb": entry(0, 8)}, "1 to 1024 printable characters"),
        ({"__metadata__": {"k": 1}, "a": entry(0, 8)}, "to map strings to strings"),
    ],
)
def test_refuses(tmp_path: Path, tensors: dict[str, object], message: str) -> None:
    assert message in refusal(write(tmp_path / "r.safetensors", tensors, bytes(8)))


def test_a_tensor_listed_twice_is_named(tmp_path: Path) -> None:
    raw = b'{"w":{"dtype":"U8","shape":[8],"data_offsets":[0,8]},"w":{"dtype":"U8","shape":[8],"data_offsets":[0,8]}}'
    assert "'w' twice" in refusal(write(tmp_path / "d.safetensors", raw, bytes(8)))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 1\n", "git lfs pull"),
        (b"\n<!DOCTYPE html><html>", "download the file again"),
        (b"<html><body>404</body></html>", "an HTML page"),
        (b"PK\x03\x04" + bytes(100), "pickles are never opened"),
        (b"GGUF" + bytes(100), "a GGUF file"),
    ],
)
def test_other_content_is_recognised(tmp_path: Path, content: bytes, message: str) -> None:
    path = tmp_path / "o.safetensors"
    path.write_bytes(content)
    assert message in refusal(path)


def test_other_kinds_of_file_are_refused_without_blocking(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo")
    assert "found: a FIFO" in refusal(tmp_path / "fifo")
    assert "found: a folder" in refusal(tmp_path)
    assert "found: a device" in refusal(Path("/dev/zero"))
    assert "No such file" in refusal(tmp_path / "absent")
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(tmp_path / "s"))
        refusal(tmp_path / "s")


def test_offsets_are_absolute_and_empty_tensors_are_fine(tmp_path: Path) -> None:
    header = read(
        write(tmp_path / "e.safetensors", {"b": entry(4, 8), "z": entry(4, 4, [0, 5]), "a": entry(0, 4)}, bytes(8))
    )
    assert list(header.tensors) == ["a", "z", "b"]
    assert header.tensors["b"] == TensorInfo("b", "U8", (4,), header.data_start + 4, 4)
    assert header.file_bytes == header.data_start + 8
