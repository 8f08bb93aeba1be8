"""Proves that engines of several files replace each other as one: after a failure, in a race, with equal content."""

from __future__ import annotations

import errno
import fcntl
import os
import threading
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from support.tiny_engines import MANIFEST, MOST, SPLIT_GROUPS, TWO_FILES, build, build_split, names, value_of

from llmc.compiler.engine import atomic
from llmc.compiler.engine.atomic import sweep
from llmc.compiler.engine.writer import EngineWriter
from llmc.runtime.engine_file.file import EngineFile, read_manifest
from llmc.runtime.engine_file.shards import suffixes
from llmc.runtime.errors import LlmcError, ResourceError


def files_of(path: Path) -> list[str]:
    """The names that its engine's files have, in the folder's order."""
    stem = path.name.removesuffix(".llmc")
    return sorted([path.name, *(stem + suffix for suffix in suffixes(read_manifest(path).shards or ()))])


def test_files_are_named_and_sized_as_asked(tmp_path: Path):
    path = build_split(tmp_path / "m.llmc", 7)
    assert value_of(path) == 7
    first, *others = (tmp_path / name for name in sorted(files_of(path), key=lambda name: (name != "m.llmc", name)))
    assert names(tmp_path) == files_of(path) and len(others) == 2
    assert [other.name[2 + 8 :] for other in others] == ["-00002-of-00003.llmc", "-00003-of-00003.llmc"]
    assert all(one.stat().st_size <= MOST.bytes for one in (first, *others))
    with EngineFile.open(path) as engine:
        assert [set(part.infos) & set(engine.tensors) for part in engine.parts] == [{"scale"}, {"a", "c"}, {"b"}]
        assert engine.section("graph") == bytes([7]) * 9
        assert engine.file_bytes == sum(one.stat().st_size for one in (first, *others))


def test_content_digests_do_not_depend_on_the_split_and_names_do(tmp_path: Path):
    paths = [build_split(tmp_path / f"{i}.llmc", 1, most) for i, most in enumerate((None, MOST, TWO_FILES))]
    assert len({read_manifest(path).content_digest for path in paths}) == 1
    assert [len(files_of(path)) for path in paths] == [1, 3, 2]
    other = build_split(tmp_path / "other.llmc", 2)
    assert len({name.partition("-")[2][:8] for path in (*paths[1:], other) for name in files_of(path)[:-1]}) == 3


def test_equal_builds_give_equal_bytes_whatever_their_names(tmp_path: Path):
    one, other = build_split(tmp_path / "one.llmc"), build_split(tmp_path / "other")
    assert one.read_bytes() == other.read_bytes()
    ends = suffixes(read_manifest(one).shards or ())
    assert {f"{name}{end}" for name in ("one", "other") for end in ends} == {*names(tmp_path)} - {"one.llmc", "other"}
    for end in ends:
        assert (tmp_path / f"one{end}").read_bytes() == (tmp_path / f"other{end}").read_bytes()
    assert value_of(other) == 1


def test_the_old_engine_s_files_go_and_no_others(tmp_path: Path):
    path = build_split(tmp_path / "m.llmc", 1)
    copied = [tmp_path / name.replace("m", "n", 1) for name in files_of(path)]
    for name, copy in zip(files_of(path), copied, strict=True):
        os.link(tmp_path / name, copy)
    stranger = tmp_path / "m-01234567-00002-of-00003.llmc"
    stranger.write_bytes(b"of nobody")
    build_split(path, 2)
    assert set(names(tmp_path)) == {*files_of(path), *(copy.name for copy in copied), stranger.name}
    assert (value_of(path), value_of(tmp_path / "n.llmc")) == (2, 1)
    build(path, 3)
    assert set(names(tmp_path)) == {"m.llmc", *(copy.name for copy in copied), stranger.name}
    assert value_of(path) == 3


def test_a_file_with_the_name_of_another_engine_s_is_left(tmp_path: Path):
    path = build_split(tmp_path / "m.llmc", 1)
    swapped = tmp_path / files_of(path)[0]
    swapped.write_bytes(b"something of the user")
    build(path, 2)
    assert names(tmp_path) == [swapped.name, "m.llmc"]
    assert swapped.read_bytes() == b"something of the user"


def test_the_same_content_again_replaces_its_files_in_place(tmp_path: Path):
    path = build_split(tmp_path / "m.llmc", 5)
    before = {name: (tmp_path / name).read_bytes() for name in names(tmp_path)}
    with EngineFile.open(path) as engine:
        build_split(path, 5)
        assert int(engine.tensor("b")[499, 139]) == 5
        engine.check_all()
        engine.demand_unchanged()
    assert {name: (tmp_path / name).read_bytes() for name in names(tmp_path)} == before
    build_split(path, 5, TWO_FILES)
    assert value_of(path) == 5 and names(tmp_path) == files_of(path)


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EIO])
@pytest.mark.parametrize("call", ["open", "posix_fallocate", "pwrite", "fsync", "rename", "preadv"])
@pytest.mark.parametrize("value", [1, 2])
def test_every_call_may_fail(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: str, code: int, value: int):
    """Over another engine, and over one of the same content, whose files have the same names."""
    path = build_split(tmp_path / "m.llmc", 1)
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
                build_split(path, value)
            except ResourceError as problem:
                message = str(problem)
            else:
                break
        failures += 1
        assert os.strerror(code) in message
        # Of three files' fsyncs and two of the folder only the last comes after the new engine has its name.
        new = nth == 4 and call == "fsync"
        assert value_of(path) == (value if new else 1)
        assert set(names(tmp_path)) >= set(files_of(path))
        assert new or names(tmp_path) == files_of(path)
        sweep(path)
        assert names(tmp_path) == files_of(path)
        build_split(path, 1)
    assert failures > 0
    assert value_of(path) == value


def test_an_interrupt_after_the_last_rename_takes_nothing_away(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    path, rename = tmp_path / "m.llmc", os.rename

    def interrupted(one: Path, other: Path) -> None:
        rename(one, other)
        if other == path:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(os, "rename", interrupted)
        build_split(path, 4)
    assert value_of(path) == 4 and names(tmp_path) == files_of(path)


class Killed(BaseException):
    """Ends a build as SIGKILL does, whose cleaning up is switched off."""


def kill_at(path: Path, value: int, step: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Leave what a build leaves that is killed at its so manieth rename or deletion."""
    steps: list[object] = []

    def counted(real: Callable[..., None]) -> Callable[..., None]:
        def counting(*given: Any, **more: Any) -> None:
            if len(steps) >= step:
                steps.append(None)
                raise Killed
            steps.append(real(*given, **more))

        return counting

    with monkeypatch.context() as patch:
        patch.setattr(atomic, "sweep", lambda _: ())
        patch.setattr(os, "rename", counted(os.rename))
        patch.setattr(Path, "unlink", counted(Path.unlink))
        patch.setattr(EngineWriter, "abort", EngineWriter._release)
        with pytest.raises(Killed):
            build_split(path, value)


@pytest.mark.parametrize(
    ("old", "step"), [(old, step) for old, steps in ((None, 4), (1, 6), (2, 4)) for step in range(steps)]
)
def test_what_a_build_left_that_was_killed_while_renaming_is_swept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, old: int | None, step: int
):
    """Three renames, two deletions of the old engine's files where it has others, and that of the link to its first."""
    path = tmp_path / "m.llmc"
    if old is not None:
        build_split(path, old)
    kill_at(path, 2, step, monkeypatch)
    now = 2 if step >= 3 else old
    assert not path.exists() if now is None else value_of(path) == now
    sweep(path)
    assert names(tmp_path) == ([] if now is None else files_of(path))
    assert now is None or value_of(path) == now


def test_a_sweep_spares_the_files_of_a_build_that_renames(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """A killed build of the same content lists the same names; the folder's lock keeps the sweep away meanwhile."""
    path, rename, swept = tmp_path / "m.llmc", os.rename, []
    kill_at(path, 3, 1, monkeypatch)
    thread = threading.Thread(target=lambda: swept.append(sweep(path)))

    def slow(one: Path, other: Path) -> None:
        rename(one, other)
        if not thread.ident:
            thread.start()
        thread.join(0.2)
        assert not swept

    with monkeypatch.context() as patch:
        patch.setattr(atomic, "sweep", lambda _: ())  # as if the other were killed after this build's own sweep
        patch.setattr(os, "rename", slow)
        build_split(path, 3)
    thread.join()
    assert swept and value_of(path) == 3 and names(tmp_path) == files_of(path)


@pytest.mark.parametrize("values", [(1, 2), (3, 3)])
def test_two_builds_at_once_leave_one_whole_engine(tmp_path: Path, values: tuple[int, int]):
    path = build_split(tmp_path / "m.llmc", 9)
    both = threading.Barrier(2)

    def work(value: int) -> None:
        both.wait()
        for _ in range(6):
            build_split(path, value)

    threads = [threading.Thread(target=work, args=(value,)) for value in values]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert value_of(path) in values
    assert names(tmp_path) == files_of(path)


@pytest.mark.parametrize("fault", [errno.EOPNOTSUPP, errno.ENOSYS, errno.EBADF])
def test_folders_without_locks_still_work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fault: int):
    flock = fcntl.flock

    def refusing(fd: int, how: int) -> None:
        if os.path.isdir(f"/proc/self/fd/{fd}"):
            raise OSError(fault, os.strerror(fault))
        flock(fd, how)

    monkeypatch.setattr(fcntl, "flock", refusing)
    build_split(tmp_path / "m.llmc", 1)
    assert value_of(build_split(tmp_path / "m.llmc", 3)) == 3
    assert names(tmp_path) == files_of(tmp_path / "m.llmc")


def test_a_folder_in_the_place_of_a_file_is_refused_and_left(tmp_path: Path):
    path = build_split(tmp_path / "m.llmc")
    third = files_of(path)[1]
    for name in names(tmp_path):
        (tmp_path / name).unlink()
    (tmp_path / third).mkdir()
    with pytest.raises(
        ResourceError, match=r"cannot write \S+/m.llmc, an engine of \d+ bytes\n  found: Is a directory"
    ):
        build_split(path)
    assert names(tmp_path) == [third]


def test_more_sections_than_were_said_are_our_bug(tmp_path: Path):
    with (
        pytest.raises(LlmcError, match="cannot write a file of at most 190000 bytes") as caught,
        EngineWriter(tmp_path / "m.llmc", SPLIT_GROUPS[:1], most=replace(MOST, sections=20_000)) as writer,
    ):
        writer.write("scale", 0, bytes(4))
        writer.section("graph", bytes(100_000))
        writer.commit(MANIFEST)
    assert caught.value.exit_code == 70
    assert names(tmp_path) == []
