"""An engine file that is written to while it is open: the error says so, and how to replace one; renaming is fine."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import llmc
from llmc.runtime.engine_file.file import EngineFile
from llmc.runtime.errors import EngineError
from llmc.runtime.probe import replay

SENTENCE = "replace engines by rename, never by copying over"


@pytest.fixture
def path(pico_engine: Any, tmp_path: Path) -> Path:
    return Path(shutil.copyfile(pico_engine("int8"), tmp_path / "a.llmc"))


def flip(path: Path, *, keep_times: bool = False) -> None:
    """Write another byte into the last weight; `keep_times` puts mtime back, as `cp -p` and rsync do."""
    before = path.stat()
    with open(path, "r+b") as file:
        file.seek(-9, os.SEEK_END)
        byte = file.read(1)
        file.seek(-9, os.SEEK_END)
        file.write(bytes([byte[0] ^ 1]))
    if keep_times:
        os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))


def copy_over(path: Path, other: Path) -> None:
    """`cp -p OTHER PATH` of a file of the same size."""
    before = path.stat()
    with open(path, "r+b") as file:
        file.write(other.read_bytes())
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))


CHANGES: dict[str, Callable[[Path], object]] = {
    "a byte": flip,
    "longer": lambda path: os.truncate(path, path.stat().st_size + 1),
}


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
def test_a_change_in_place_is_found_by_the_next_request(change: Callable[[Path], object], path: Path):
    with llmc.load(path) as engine:
        engine.generate("def", max_tokens=2)
        change(path)
        for use in (lambda: engine.generate("def", max_tokens=2), lambda: engine.logits([1, 2])):
            with pytest.raises(EngineError, match=SENTENCE) as caught:
                use()
            assert str(caught.value).startswith(f"cannot go on with {path}: the file was changed since it was opened")


def test_a_change_while_a_request_runs_is_found_at_its_end(path: Path):
    with llmc.load(path) as engine, engine.stream("def", max_tokens=300, ignore_eos=True) as stream:
        next(stream)
        flip(path)
        with pytest.raises(EngineError, match=SENTENCE):
            for _ in stream:
                pass


def test_another_engine_copied_over_with_its_time_put_back_is_found(path: Path, pico_engine: Any, tmp_path: Path):
    data = path.read_bytes()
    other = tmp_path / "other.llmc"
    digit = data.index(b'"llmc.sha256":"') + len(b'"llmc.sha256":"')
    other.write_bytes(data[:digit] + (b"1" if data[digit : digit + 1] == b"0" else b"0") + data[digit + 1 :])
    with llmc.load(path) as engine:
        copy_over(path, other)
        with pytest.raises(EngineError, match=SENTENCE):
            engine.generate("def", max_tokens=2)


HARMLESS: dict[str, Callable[[Path], object]] = {
    "renamed over": lambda path: os.replace(shutil.copyfile(path, path.with_name("new")), path),
    "removed": os.unlink,
    "moved": lambda path: path.rename(path.with_name("moved")),
    "linked": lambda path: os.link(path, path.with_name("linked")),
    "touched": os.utime,
    "the same bytes written again": lambda path: copy_over(path, path),
    "another mode": lambda path: path.chmod(0o400),
    "read": lambda path: path.read_bytes(),
}


@pytest.mark.parametrize("change", HARMLESS.values(), ids=HARMLESS)
def test_what_leaves_the_open_file_as_it_is_is_no_change(change: Callable[[Path], object], path: Path):
    with llmc.load(path) as engine:
        first = engine.generate("def", max_tokens=4, temperature=0).token_ids
        change(path)
        assert engine.generate("def", max_tokens=4, temperature=0).token_ids == first
        assert engine.generate("def", max_tokens=4, temperature=0).token_ids == first


@pytest.mark.parametrize("work", (llmc.load, replay))
def test_a_change_while_it_is_loaded_or_replayed_is_found(
    work: Callable[[Path], object], path: Path, monkeypatch: pytest.MonkeyPatch
):
    def changing(*given: Any, **more: Any) -> Any:
        monkeypatch.setattr(EngineFile, "tensor", tensor)
        flip(path)
        return tensor(*given, **more)

    tensor = EngineFile.tensor
    monkeypatch.setattr(EngineFile, "tensor", changing)
    with pytest.raises(EngineError, match=SENTENCE):
        work(path)


def test_the_commands_exit_with_3(call: Any, path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    from llmc.runtime.engine import Engine

    stream = Engine.stream

    def changing(*given: Any, **more: Any) -> Any:
        flip(path)
        return stream(*given, **more)

    monkeypatch.setattr(Engine, "stream", changing)
    outcome = call("run", path, "def", "--max-tokens", 2)
    assert outcome.code == 3 and SENTENCE in outcome.err
    lines = tmp_path / "lines.jsonl"
    lines.write_text('{"prompt": "def"}\n{"prompt": "class"}\n')
    outcome = call("run", path, "--prompts", lines, "--max-tokens", 2)
    assert outcome.code == 3 and outcome.out.count(SENTENCE) == 2
