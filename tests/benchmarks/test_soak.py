"""The result of `make soak` names the commit that was tested, and there is one or none."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from support.paths import ROOT

sys.path.append(str(ROOT / "benchmarks"))
import soak  # pyright: ignore[reportMissingImports]

GIT = ("git", "-c", "user.name=a", "-c", "user.email=a@b", "-C")
COMMITS = """
import subprocess, pytest
@pytest.mark.soak
def test_a():
    subprocess.run([*{git}, ".", "commit", "-qm", "later", "--allow-empty"], check=True)
"""


@pytest.fixture
def checkout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "test_a.py").write_text(COMMITS.format(git=GIT))
    monkeypatch.setattr(soak, "ROOT", tmp_path)
    monkeypatch.setattr(soak, "PYTEST", ["-m", "pytest", "-q"])
    monkeypatch.setattr(sys, "argv", ["soak.py", "--out", str(tmp_path / "soak.json")])
    return tmp_path


def git(checkout: Path, *words: str) -> str:
    return subprocess.run([*GIT, str(checkout), *words], capture_output=True, text=True, check=True).stdout.strip()


def test_the_commit_is_that_which_was_tested(checkout: Path):
    git(checkout, "init", "-q")
    git(checkout, "commit", "-qm", "first", "--allow-empty")
    first = git(checkout, "rev-parse", "--short", "HEAD")
    with pytest.raises(SystemExit) as ended:
        soak.main()
    found = json.loads((checkout / "soak.json").read_text())
    assert (ended.value.code, found["passed"], found["failed"]) == (0, 1, [])
    assert found["commit"] == first != git(checkout, "rev-parse", "--short", "HEAD")


def test_without_a_checkout_no_test_runs(checkout: Path, capfd: pytest.CaptureFixture[str]):
    with pytest.raises(subprocess.CalledProcessError):
        soak.main()
    assert "test" not in capfd.readouterr().out


def test_a_pytest_that_cannot_start_leaves_no_result(checkout: Path, monkeypatch: pytest.MonkeyPatch):
    git(checkout, "init", "-q")
    git(checkout, "commit", "-qm", "first", "--allow-empty")
    monkeypatch.setattr(soak, "PYTEST", ["-m", "pytest", "--no-such-flag"])
    with pytest.raises(SystemExit, match="no test ran: pytest ended with exit code 4"):
        soak.main()
    assert not (checkout / "soak.json").exists()
