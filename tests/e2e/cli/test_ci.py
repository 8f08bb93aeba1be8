"""The files of examples/ci: their commands run, in order, as their services run them, and their keys are known."""

from __future__ import annotations

import csv
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from scripts.forked import forked_llmc
from support.paths import ROOT

INSTALL = "pip install '.[build]'"
GITHUB, GITLAB = (ROOT / "examples" / "ci" / name for name in ("github.yml", "gitlab-ci.yml"))
# The keys of the two services' references that the files use; a mistyped one is ignored there, or stops the pipeline.
GITHUB_KEYS = {
    "workflow": {"name", True, "permissions", "env", "jobs"},  # YAML 1.1 reads the key `on` as true
    "job": {"runs-on", "timeout-minutes", "steps"},
    "step": {"name", "run", "uses", "with"},
}
GITLAB_KEYS = {
    "file": {"image", "variables"},
    "job": {"timeout", "script", "artifacts"},
    "kept": {"paths", "expire_in"},
}


def read(path: Path) -> dict[Any, Any]:
    return yaml.safe_load(path.read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def llmc(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    with forked_llmc(tmp_path_factory.mktemp("bin")) as found:
        yield found


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """What the files name of the tree, in a folder that may be written to."""
    for name in ("examples", "cli"):
        (tmp_path / name).symlink_to(ROOT / name)
    return tmp_path


def run(commands: list[str], folder: Path, llmc: Path, **variables: str) -> int:
    """The exit code of commands, each by `bash -e` as both services do, until one fails; what installs is left out."""
    assert commands[0] == INSTALL, "the files install what works today: a checkout"
    path = f"{llmc.parent}:{Path(sys.executable).parent}:{os.environ['PATH']}"
    environment = {**os.environ, "PATH": path, "LC_ALL": "C.UTF-8", **variables}
    for command in commands[1:]:
        done = subprocess.run(
            ["bash", "-e", "-c", command], cwd=folder, env=environment, capture_output=True, text=True
        )
        if done.returncode:
            assert "llmc: " in done.stderr, done.stderr
            return done.returncode
    return 0


def github() -> tuple[list[str], dict[str, str], list[str]]:
    """Commands, variables and uploaded paths."""
    workflow = read(GITHUB)
    (job,) = workflow["jobs"].values()
    uploads = [step["with"]["path"] for step in job["steps"] if "upload" in step.get("uses", "")]
    return [step["run"] for step in job["steps"] if "run" in step], workflow["env"], uploads[0].split()


def test_the_keys_of_the_github_file_are_known():
    workflow = read(GITHUB)
    assert workflow.keys() == GITHUB_KEYS["workflow"]
    assert workflow[True].keys() == {"push", "workflow_dispatch"}
    (job,) = workflow["jobs"].values()
    assert job.keys() == GITHUB_KEYS["job"]
    for step in job["steps"]:
        assert step.keys() <= GITHUB_KEYS["step"] and ("run" in step) != ("uses" in step)
    assert all(isinstance(value, str) for value in workflow["env"].values())
    assert [step["uses"] for step in job["steps"] if "uses" in step] == [
        *("actions/checkout@v4", "actions/setup-python@v5", "actions/upload-artifact@v4")
    ]
    assert "upload" in job["steps"][-1]["uses"], "it is uploaded after the gates"


def test_the_keys_of_the_gitlab_file_are_known():
    file = read(GITLAB)
    assert file.keys() - {"engine"} == GITLAB_KEYS["file"]
    assert file["engine"].keys() == GITLAB_KEYS["job"]
    assert file["engine"]["artifacts"].keys() == GITLAB_KEYS["kept"], "kept on success only, which is the default"
    assert all(isinstance(value, str) for value in (*file["variables"].values(), *file["engine"]["script"]))


def test_both_files_judge_alike():
    file = read(GITLAB)
    commands, variables, _ = github()
    assert variables == file["variables"]

    def gates(lines: list[str]) -> list[str]:
        return [part for line in lines for part in line.split() if "<=" in part or ">=" in part]

    assert gates(commands) == gates(file["engine"]["script"]) != []


@pytest.mark.slow
def test_the_commands_of_the_github_file_run(checkout: Path, llmc: Path):
    commands, variables, uploads = github()
    summary = checkout / "summary.md"
    assert run(commands, checkout, llmc, **variables, GITHUB_STEP_SUMMARY=str(summary)) == 0
    assert [path for path in uploads if not (checkout / path).is_file()] == []
    text = summary.read_text()
    assert text.startswith("# llmc build: engine.llmc\n")
    assert "| engine.llmc |" in text and "gate kl_mean<=0.01 passed: " in text and "gate decode>=10 passed: " in text
    assert run(commands, checkout, llmc, **{**variables, "MAX_KL": "0"}, GITHUB_STEP_SUMMARY=str(summary)) == 1
    assert "gate kl_mean<=0 failed: " in summary.read_text()


@pytest.mark.slow
@pytest.mark.soak  # they are those of the other file
def test_the_commands_of_the_gitlab_file_run(checkout: Path, llmc: Path):
    file = read(GITLAB)
    script, variables = file["engine"]["script"], file["variables"]
    assert run(script, checkout, llmc, **variables) == 0
    assert [path for path in file["engine"]["artifacts"]["paths"] if not (checkout / path).is_file()] == []
    report = json.loads((checkout / "report.json").read_text())
    assert report["bytes"] == (checkout / "engine.llmc").stat().st_size
    (accuracy,) = csv.DictReader((checkout / "accuracy.csv").open())
    assert 0 < float(accuracy["kl_mean"]) <= 0.01
    assert [row["batch"] for row in csv.DictReader((checkout / "speed.csv").open())] == ["1", "8"]
    assert run(script, checkout, llmc, **{**variables, "MIN_TOKENS_PER_S": "1e9"}) == 1
