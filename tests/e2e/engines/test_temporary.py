"""What a killed process left in TMPDIR goes with the next build; what a running one uses stays."""

from __future__ import annotations

import signal
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest
from support.engines import PICO

import llmc
from llmc.runtime.files import temporary

OWNER = """
import sys, tempfile
tempfile.tempdir = sys.argv[1]
from llmc.runtime.files import temporary
path = temporary.make("kernels")
(path / "cache").mkdir()
(path / "cache" / "file").write_text("x")
print(path, flush=True)
sys.stdin.read()
"""


def test_a_build_deletes_what_a_killed_process_left(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    place = tmp_path / "tmp"
    place.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(place))
    command = [sys.executable, "-c", OWNER, str(place)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as owner:
        assert owner.stdout is not None
        path = Path(owner.stdout.readline().strip())
        with temporary.folder("times") as other:
            assert sorted(place.iterdir()) == sorted((path, other))
        llmc.build(PICO, tmp_path / "one.llmc")
        assert [*place.iterdir()] == [path]
        owner.send_signal(signal.SIGKILL)
    assert (path / "cache" / "file").exists()
    llmc.build(PICO, tmp_path / "two.llmc")
    assert [*place.iterdir()] == []
