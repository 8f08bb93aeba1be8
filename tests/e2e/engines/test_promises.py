"""The promises of SECURITY.md that no single fault shows, and that docs/faults.md names tests that exist."""

from __future__ import annotations

import ast
import re
import shutil
import socket
import subprocess
import sys
from pathlib import Path

import pytest
from support.commands import Call, built
from support.engines import PicoEngine
from support.paths import PICO, ROOT


@pytest.fixture
def call(capsys: pytest.CaptureFixture[str]) -> Call:
    return Call(capsys)


def test_nothing_touches_the_network(call: Call, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("the network was used")

    for name in ("connect", "connect_ex", "bind", "sendto"):
        monkeypatch.setattr(socket.socket, name, refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    checkpoint = Path(shutil.copytree(PICO, tmp_path / "checkpoint"))
    path, _ = built(call, checkpoint, "--quantize", "int8")
    for command in (
        ("inspect", checkpoint),
        ("inspect", path),
        ("verify", path),
        ("run", path, "x", "--max-tokens", 1),
    ):
        assert call(*command)[0] == 0


def test_using_an_engine_writes_nothing(pico_engine: PicoEngine, tmp_path: Path):
    """Home, working and temporary folder stay empty, and so does the engine's."""
    folders = {name: tmp_path / name for name in ("home", "work", "temp", "engine")}
    for folder in folders.values():
        folder.mkdir()
    path = Path(shutil.copy(pico_engine("int8"), folders["engine"]))
    before = path.stat()
    variables = {"HOME": folders["home"], "TMPDIR": folders["temp"], "PYTHONDONTWRITEBYTECODE": "1"}
    for command in (["run", path, "x", "--max-tokens", "2"], ["verify", path], ["inspect", path]):
        done = subprocess.run(
            [sys.executable, "-m", "llmc", *map(str, command)],
            cwd=folders["work"],
            env={key: str(value) for key, value in variables.items()},
            capture_output=True,
        )
        assert done.returncode == 0, done.stderr
    assert [sorted(p.name for p in folder.iterdir()) for folder in folders.values()] == [[], [], [], [path.name]]
    assert path.stat() == before or path.stat().st_mtime_ns == before.st_mtime_ns


TEST_NAME = re.compile(r"`(tests/[a-z0-9_/]+\.py)::([a-z0-9_]+)`")
FILE_NAME = re.compile(r"`(tests/[a-z0-9_/]+\.(?:txt|py))`")
"""A script, or a file of tests that are all about a fault."""


def test_every_test_that_the_table_of_faults_names_exists():
    text = (ROOT / "docs" / "faults.md").read_text()
    rows = [line for line in text.splitlines() if re.match(r"\| [0-9]+ \|", line)]
    assert [int(row.split("|")[1]) for row in rows] == list(range(1, len(rows) + 1))
    for row in rows:
        assert TEST_NAME.search(row) or FILE_NAME.search(row) or "does not apply" in row, row
    named = TEST_NAME.findall(text)
    assert len(named) == text.count("::"), "a test is named in another form"
    assert [name for name in FILE_NAME.findall(text) if not (ROOT / name).is_file()] == []
    for file in {file for file, _ in named}:
        tree = ast.parse((ROOT / file).read_text())
        defined = {node.name for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)}
        assert {name for other, name in named if other == file} <= defined, file
