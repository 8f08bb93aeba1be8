"""The commands of docs/debugging.md run, in its order, and say what the page shows, but for numbers."""

from __future__ import annotations

import re
import shlex
from collections.abc import Callable
from pathlib import Path

import pytest
from support.commands import Outcome
from support.paths import ROOT

BLOCKS = re.findall(r"```console\n(.*?)```", (ROOT / "docs" / "debugging.md").read_text(encoding="utf-8"), re.DOTALL)


def pattern(line: str) -> str:
    """A line in which each number stands for any, and runs of spaces and the length of the line do not count."""
    return re.sub(r"\d+(\.\d+)?(e[+-]\d+)?", "0", " ".join(line.split()))


@pytest.mark.slow
def test_the_commands_of_the_page_say_what_it_shows(
    call: Callable[..., Outcome], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "examples").symlink_to(ROOT / "examples")
    commands = 0
    for part in re.split(r"^\$ llmc ", "".join(BLOCKS), flags=re.MULTILINE)[1:]:
        command, _, shown = part.partition("\n")
        outcome = call(*shlex.split(command))
        assert outcome.code == 0, outcome.err
        said = set(map(pattern, f"{outcome.out}\n{outcome.err}".splitlines()))
        assert {pattern(line) for line in shown.splitlines() if line != "..."} <= said, command
        commands += 1
    assert commands == 7
