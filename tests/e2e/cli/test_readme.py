"""The README's transcripts run, in its order, and print what it shows: texts, sizes and digests to the letter."""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
from collections.abc import Callable, Iterator
from itertools import takewhile
from pathlib import Path

import pytest
from support.commands import Outcome
from support.engines import HAS_VNNI
from support.paths import ROOT

README = (ROOT / "README.md").read_text(encoding="utf-8")
MEASURED = (
    r"[\d.]+(?= tokens/s)",
    r"(?<= in )[\d.]+(?= s)",
    r"(?<=after )[\d.]+(?= s)",
    r"(?<=peak memory )[\d.]+ [MG]iB",
    r"(?<=  )\d+\.\d\d$",
)
"""What differs from run to run and from machine to machine; each becomes #."""


def transcripts() -> Iterator[tuple[str, list[str]]]:
    """Every `$ command` of the page, with the lines shown below it."""
    for block in re.findall(r"^```\n(\$ .*?)^```$", README, re.MULTILINE | re.DOTALL):
        for part in re.split(r"^\$ ", block, flags=re.MULTILINE)[1:]:
            command, _, shown = part.partition("\n")
            yield command, shown.splitlines()
    # the block of `make demo` has its output in the next block, without a $


def plain(line: str) -> str:
    for pattern in MEASURED:
        line = re.sub(pattern, "#", line.rstrip())
    return " ".join(line.split())


def commands_of(command: str) -> list[list[str]]:
    """The command lines of llmc that a line of the page runs."""
    if command == "make demo":
        made = subprocess.run(["make", "-n", "demo"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
        return [shlex.split(line)[1:] for line in made.splitlines() if line.startswith(".venv/bin/llmc ")]
    program, *words = shlex.split(command.partition("  #")[0])
    return [words] if program in ("llmc", ".venv/bin/llmc") else []


def before_texts(command: str, shown: list[str]) -> list[str]:
    """What is shown before a model computes: kernels of other CPUs round otherwise, so texts and figures differ."""
    computes = ("llmc run ", "llmc eval ")
    return list(takewhile(lambda line: not any(word in line for word in computes), [f"$ {command}", *shown]))[1:]


@pytest.mark.slow
@pytest.mark.skipif(sys.version_info[:2] != (3, 11), reason="the digest of the page names Python 3.11")
def test_the_commands_of_the_readme_print_what_it_shows(
    call: Callable[..., Outcome], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "examples").symlink_to(ROOT / "examples")
    (tmp_path / "build" / "demo").mkdir(parents=True)
    ran = 0
    for command, shown in transcripts():
        said: list[str] = []
        for words in commands_of(command):
            outcome = call(*words)
            assert outcome.code == 0, (words, outcome.err)
            said += [*outcome.err.splitlines(), *outcome.out.splitlines()]
            ran += 1
        if not HAS_VNNI:
            shown = before_texts(command, shown)
        expected = [plain(line) for line in shown if line.strip() not in ("", "...")]
        missing = [line for line in expected if line not in set(map(plain, said)) and not line.startswith(".venv/bin/")]
        assert not said or not missing, f"{command}\nmissing: {missing}\nsaid: {said}"
    assert ran >= 7


@pytest.mark.slow
def test_the_python_of_the_readme_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "examples").symlink_to(ROOT / "examples")
    (code,) = re.findall(r"^```python\n(.*?)^```$", README, re.MULTILINE | re.DOTALL)
    exec(compile(code, "README.md", "exec"), {})
