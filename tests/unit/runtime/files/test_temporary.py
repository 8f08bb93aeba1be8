"""Folders without an owner are deleted; those of other users and of other programs stay."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

import pytest

from llmc.runtime.files import temporary


@pytest.fixture(autouse=True)
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    return tmp_path


def test_the_next_folder_sweeps(place: Path) -> None:
    left = place / "llmc-own-kernels-abcdefgh"
    left.mkdir()
    with temporary.folder("kernels") as path:
        assert [*place.iterdir()] == [path]


def test_other_things_stay(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    kept = [place / name for name in ("llmc-own-kernels-abc", "llmc-kernels-abcdefgh", "tmpabcdefgh", "data")]
    for path in kept:
        path.mkdir()
    (place / "llmc-own-kernels-linklink").symlink_to(place / "data")
    (place / "llmc-own-kernels-filefile").write_text("x")
    (place / "llmc-own-kernels-someones").mkdir()
    before = sorted(place.iterdir())
    monkeypatch.setattr(os, "geteuid", lambda: os.getuid() + 1)
    assert temporary.sweep() == ()
    assert sorted(place.iterdir()) == before
    monkeypatch.undo()
    monkeypatch.setattr(tempfile, "tempdir", str(place))
    assert temporary.sweep() == (place / "llmc-own-kernels-someones",)


def test_a_folder_that_was_swept_before_its_lock_is_made_again(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lock, times = temporary._lock, []

    def late(fd: int, *, wait: bool) -> bool:
        if not times:
            [path.rmdir() for path in place.iterdir()]
        times.append(1)
        return lock(fd, wait=wait)

    monkeypatch.setattr(temporary, "_lock", late)
    with temporary.folder("kernels") as path:
        assert path.exists() and len(times) == 2
