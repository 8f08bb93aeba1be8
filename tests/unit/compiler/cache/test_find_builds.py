"""Builds into the cache: damaged engines, killed and failing builds, and two builders at once."""

from __future__ import annotations

import errno
import os
import threading
from collections.abc import Callable
from pathlib import Path

import pytest
from support.engines import build_cached, find_cached, never, small_checkpoint

import llmc
from llmc.runtime.engine_file.file import EngineFile, verify_engine
from llmc.runtime.errors import ResourceError
from llmc.runtime.progress import NO_PROGRESS


def flip(path: Path, at: int) -> None:
    with open(path, "r+b") as file:
        file.seek(at)
        byte = file.read(1)
        file.seek(at)
        file.write(bytes([byte[0] ^ 1]))


def begin_of(path: Path, name: str) -> int:
    with EngineFile.open(path) as engine:
        return engine._infos[name].offset


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (lambda path: flip(path, 3000), "expected the header of"),
        (lambda path: flip(path, begin_of(path, "__llmc__/profiles/cpu/graph.onnx")), "expected section"),
        (lambda path: os.truncate(path, 5000), "expected a header of"),
        (lambda path: os.truncate(path, 0), "expected a safetensors file"),
        (lambda path: path.write_bytes(b"x" * 5000), "a text file"),
    ],
)
def test_a_damaged_engine_is_built_again(checkpoint: Path, folder: Path, damage: Callable[[Path], object], said: str):
    found = build_cached(checkpoint)
    whole = found.path.read_bytes()
    damage(found.path)
    found = find_cached(checkpoint)
    assert not found.ready and said in found.damage
    assert found.build(NO_PROGRESS, never) is not None
    assert found.path.read_bytes() == whole
    assert find_cached(checkpoint).ready and os.listdir(folder) == [f"{found.key}.llmc"]


def test_an_engine_of_another_checkpoint_is_not_run(checkpoint: Path, tmp_path: Path):
    other = small_checkpoint(tmp_path / "other", tokenizer=False, hidden_size=128)
    found = build_cached(checkpoint)
    llmc.build(other, found.path, quantize="int8", force=True)
    found = find_cached(checkpoint)
    assert found.damage == "an engine of another checkpoint"
    assert found.build(NO_PROGRESS, never) is not None and find_cached(checkpoint).ready


def test_damaged_weights_are_found_if_every_byte_is_checked(checkpoint: Path):
    found = build_cached(checkpoint)
    with EngineFile.open(found.path) as engine:
        name = next(name for name, info in engine.tensors.items() if info.nbytes > 1000)
    flip(found.path, begin_of(found.path, name) + 500)
    assert find_cached(checkpoint).ready
    found = find_cached(checkpoint, verify="full")
    assert "to match their digests" in found.damage
    assert found.build(NO_PROGRESS, never) is not None
    verify_engine(found.path).close()


def test_what_a_killed_build_left_has_no_name_of_an_engine_and_goes(checkpoint: Path, folder: Path):
    found = find_cached(checkpoint)
    folder.mkdir(parents=True)
    left = [folder / f".{found.key}.llmc.1234.0123456789abcdef", folder / f".{found.key}.lock"]
    for path in left:
        path.write_bytes(b"half")
    assert not find_cached(checkpoint).ready
    assert found.build(NO_PROGRESS, never) is not None
    assert os.listdir(folder) == [f"{found.key}.llmc"]


def test_a_build_that_fails_leaves_the_cache_as_it_was(checkpoint: Path, folder: Path, monkeypatch: pytest.MonkeyPatch):
    found = find_cached(checkpoint)

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "posix_fallocate", full)
    with pytest.raises(ResourceError) as caught:
        found.build(NO_PROGRESS, never)
    assert f"cannot write {found.path}, an engine of " in str(caught.value)
    assert "\n  found: No space left on device, " in str(caught.value)
    assert "\n  try: llmc cache rm --older-than 30d to make room, or LLMC_CACHE=FOLDER" in str(caught.value)
    assert os.listdir(folder) == []


def test_too_little_memory_keeps_its_own_advice(checkpoint: Path, monkeypatch: pytest.MonkeyPatch):
    import llmc.compiler.engine.weights as weights

    found = find_cached(checkpoint)
    monkeypatch.setattr(weights, "_LATER_BYTES", 1 << 60)
    with pytest.raises(ResourceError, match="cannot build within") as caught:
        found.build(NO_PROGRESS, never)
    assert "llmc cache rm" not in str(caught.value)


def test_the_second_of_two_builders_waits_and_takes_the_first_one_s_engine(checkpoint: Path, folder: Path):
    first, second = find_cached(checkpoint), find_cached(checkpoint)
    waits, results = threading.Event(), []

    def other() -> None:
        results.append(second.build(NO_PROGRESS, waits.set))

    with first.store.lock(first.key, never):
        builder = threading.Thread(target=other)
        builder.start()
        assert waits.wait(60)
        with pytest.warns(UserWarning):
            llmc.build(checkpoint, first.path, quantize="int8")
    builder.join()
    assert results == [None]
    assert second.ready and os.listdir(folder) == [f"{first.key}.llmc"]


def test_the_second_builds_if_the_first_has_failed(checkpoint: Path, folder: Path):
    first, second = find_cached(checkpoint), find_cached(checkpoint)
    waits, results = threading.Event(), []

    def other() -> None:
        results.append(second.build(NO_PROGRESS, waits.set))

    with first.store.lock(first.key, never):
        builder = threading.Thread(target=other)
        builder.start()
        assert waits.wait(60)
    builder.join()
    assert len(results) == 1 and results[0] is not None
    assert os.listdir(folder) == [f"{first.key}.llmc"]
