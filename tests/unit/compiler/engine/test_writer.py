"""Proves that a build that fails, is killed or runs out of space leaves the old engine whole and nothing else."""

from __future__ import annotations

import errno
import fcntl
import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support.tiny_engines import GROUPS, MANIFEST, build, names, value_of

from llmc.compiler.engine import atomic
from llmc.compiler.engine.atomic import sweep
from llmc.compiler.engine.writer import EngineWriter
from llmc.runtime.engine_file.bind import Stored
from llmc.runtime.engine_file.file import EngineFile
from llmc.runtime.errors import EngineError, LlmcError, ResourceError


def test_writes_in_parts_and_reads_back(tmp_path: Path) -> None:
    rows = np.arange(600, dtype=np.uint16).reshape(6, 100)
    with EngineWriter(tmp_path / "m.llmc", GROUPS) as writer:
        for start in (0, 4):
            writer.write("a", start * 200, rows[start : start + 4])
            np.testing.assert_array_equal(writer.read("a", start, min(start + 4, 6)), rows[start : start + 4])
        with pytest.raises(ValueError, match="rows 0 to 1 are not written"):
            writer.read("b", 0, 1)
        writer.write("b", 0, bytes(350))
        writer.write("scale", 0, np.array(2, np.float32))
        assert (writer.read("scale", 0, -1).tolist(), writer.read("a", 4, -1).shape) == (2.0, (2, 100))
        writer.commit(MANIFEST)
    with EngineFile.open(tmp_path / "m.llmc", verify="full") as engine:
        np.testing.assert_array_equal(engine.tensor("a"), rows)
        assert engine.tensor("scale").shape == ()
    assert names(tmp_path) == ["m.llmc"]


@pytest.mark.parametrize(
    ("act", "message"),
    [
        (lambda writer: writer.write("b", 1, bytes(4)), "4 bytes at 1 do not follow the 0 of 350"),
        (lambda writer: writer.write("b", 0, bytes(351)), "351 bytes at 0"),
        (lambda writer: writer.write("a", 0, np.zeros(4, np.float32)), "expected uint16 for BF16, found float32"),
        (lambda writer: writer.commit(MANIFEST), r"not written to the end: \['a', 'b', 'scale'\]"),
        (lambda writer: writer.section("../x", b""), "a plain name"),
        (lambda writer: writer.section("pad/1", b""), "a plain name"),
        (lambda writer: [writer.section("x", b"") for _ in range(2)], "still free"),
    ],
)
def test_misuse_is_refused_and_leaves_nothing(tmp_path: Path, act: Callable[[EngineWriter], Any], message: str) -> None:
    with pytest.raises(ValueError, match=message), EngineWriter(tmp_path / "m.llmc", GROUPS) as writer:
        act(writer)
    assert names(tmp_path) == []


@pytest.mark.parametrize(
    ("group", "message"),
    [
        ([("a", "U8"), ("b", "F32")], "b: F32 cannot lie at byte"),
        ([("a", "F4")], "unknown dtype 'F4'"),
        ([("a", "U8"), ("a", "U8")], "still free"),
        ([("__llmc__/pad/1", "U8")], "a plain tensor name"),
    ],
)
def test_impossible_layouts_are_refused(tmp_path: Path, group: list[tuple[str, str]], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        EngineWriter(tmp_path / "m.llmc", [[Stored(name, dtype, (3,)) for name, dtype in group]])
    assert names(tmp_path) == []


def test_a_header_that_outgrows_its_reserve_is_our_bug(tmp_path: Path) -> None:
    with (
        pytest.raises(LlmcError, match="bytes reserved") as caught,
        EngineWriter(tmp_path / "m.llmc", [], reserve_header=300) as writer,
    ):
        writer.commit(MANIFEST)
    assert caught.value.exit_code == 70
    assert names(tmp_path) == []


def test_a_manifest_that_no_reader_would_take_is_refused(tmp_path: Path) -> None:
    wrong = replace(MANIFEST, model=replace(MANIFEST.model, heads=-1))
    with pytest.raises(EngineError, match=r"model\.heads"), EngineWriter(tmp_path / "m.llmc", []) as writer:
        writer.commit(wrong)
    assert names(tmp_path) == []


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EIO, errno.EDQUOT])
@pytest.mark.parametrize("call", ["open", "posix_fallocate", "pwrite", "fsync", "rename", "preadv"])
def test_every_call_may_fail(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: str, code: int) -> None:
    path = build(tmp_path / "m.llmc", 1)
    real, failures = getattr(os, call), 0
    for nth in range(100):
        count = 0

        def failing(*args: Any, nth: int = nth, **more: Any) -> Any:
            nonlocal count
            count += 1
            if count == nth + 1:
                raise OSError(code, os.strerror(code))
            return real(*args, **more)

        with monkeypatch.context() as patch:
            patch.setattr(os, call, failing)
            try:
                build(path, 2)
            except ResourceError as problem:
                message = str(problem)
            else:
                break
        failures += 1
        assert os.strerror(code) in message
        assert "bytes free" in message
        assert names(tmp_path) == ["m.llmc"]
        # Only the fsync of the folder comes after the new engine has its name.
        assert value_of(path) == (2 if nth == 1 and call == "fsync" else 1)
        build(path, 1)
    assert failures > 0
    assert value_of(path) == 2


def test_short_writes_and_reads_are_continued(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write, read = os.pwrite, os.preadv
    monkeypatch.setattr(os, "pwrite", lambda fd, data, at: write(fd, data[:100], at))
    monkeypatch.setattr(os, "preadv", lambda fd, buffers, at: read(fd, [buffers[0][:7]], at))
    with EngineWriter(tmp_path / "m.llmc", GROUPS[:1]) as writer:
        rows = np.arange(600, dtype=np.uint16).reshape(6, 100)
        writer.write("a", 0, rows)
        np.testing.assert_array_equal(writer.read("a", 1, 5), rows[1:5])
        writer.commit(MANIFEST)
    np.testing.assert_array_equal(EngineFile.open(tmp_path / "m.llmc", verify="full").tensor("a"), rows)


@pytest.mark.parametrize("fault", [errno.EOPNOTSUPP, errno.ENOSYS])
def test_file_systems_without_reserving_or_locks_still_work(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fault: int
) -> None:
    def missing(*_: Any) -> None:
        raise OSError(fault, os.strerror(fault))

    monkeypatch.setattr(os, "posix_fallocate", missing)
    monkeypatch.setattr(fcntl, "flock", missing)
    assert value_of(build(tmp_path / "m.llmc", 3)) == 3
    assert names(tmp_path) == ["m.llmc"]


def test_odd_targets(tmp_path: Path) -> None:
    with pytest.raises(ResourceError, match="mkdir -p"):
        build(tmp_path / "absent" / "m.llmc")
    (tmp_path / "folder").mkdir()
    with pytest.raises(ResourceError, match="the path exists and is not a file"):
        build(tmp_path / "folder")
    with pytest.raises(ResourceError, match=r"Read-only file system|Permission denied|not permitted|No such file"):
        build(Path("/proc/m.llmc"))
    assert names(tmp_path) == ["folder"]


def test_space_is_refused_at_once(tmp_path: Path) -> None:
    path = build(tmp_path / "m.llmc")
    with pytest.raises(ResourceError, match="an engine of 11529215046") as caught:
        EngineWriter(path, [[Stored("w", "U8", (1 << 40, 1 << 20))]], reserve_header=1000)
    assert caught.value.exit_code == 4
    assert names(tmp_path) == ["m.llmc"]
    assert value_of(path) == 1


def test_the_old_engine_stays_readable_while_it_is_replaced(tmp_path: Path) -> None:
    path = build(tmp_path / "m.llmc", 1)
    with EngineFile.open(path) as engine:
        build(path, 2)
        assert int(engine.tensor("scale")) == 1
        engine.check_all()
    assert value_of(path) == 2


def test_sweep_takes_only_what_nobody_holds(tmp_path: Path) -> None:
    path = tmp_path / "m.llmc"
    stale = tmp_path / f".m.llmc.123.{'0' * 16}"
    others = [f".m.llmc.123.{'0' * 15}", f".n.llmc.123.{'0' * 16}", "m.llmc.part", f".m.llmc.x.{'0' * 16}"]
    for name in (stale.name, *others):
        (tmp_path / name).write_bytes(b"x")
    (tmp_path / f".m.llmc.1.{'a' * 16}").symlink_to(stale)
    with EngineWriter(path, GROUPS):
        living = [name for name in names(tmp_path) if f".{os.getpid()}." in name]
        assert len(living) == 1
        assert sweep(path) == ()
        assert set(names(tmp_path)) == {*others, *living, f".m.llmc.1.{'a' * 16}"}
    assert sweep(path) == ()


def test_a_sweeper_between_creation_and_lock_costs_only_a_retry(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, swept = fcntl.flock, []

    def late(fd: int, how: int) -> None:
        if how == fcntl.LOCK_EX and not swept:
            swept.extend(os.listdir(tmp_path))
            os.unlink(tmp_path / swept[0])
        real(fd, how)

    monkeypatch.setattr(atomic.fcntl, "flock", late)
    assert value_of(build(tmp_path / "m.llmc", 4)) == 4
    assert len(swept) == 1
