"""Sealed files: whole or absent, whatever is done to them."""

from __future__ import annotations

from pathlib import Path

from llmc.runtime.files.sealed import read_sealed, write_sealed


def test_a_sealed_file_is_whole_or_absent(tmp_path: Path):
    path = tmp_path / "folder" / "file"
    assert read_sealed(path) is None
    assert write_sealed(path, {"a": [1, None]}) and read_sealed(path) == {"a": [1, None]}
    data = path.read_bytes()
    for damaged in (b"", data[:-1], data.replace(b"1", b"2"), b"\n", b"0" * 64 + b"\n{}"):
        path.write_bytes(damaged)
        assert read_sealed(path) is None
    assert not write_sealed(path / "below", {}) and [one.name for one in path.parent.iterdir()] == ["file"]
