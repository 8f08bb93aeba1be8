"""Runs text scripts: commands of a shell with the output they must have; tests/scripts/README.md has the format."""

from __future__ import annotations

import os
import re
import signal
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass, replace
from difflib import unified_diff
from pathlib import Path

from scripts.expected import Lines, matches, rewritten

_STEP = re.compile(r"\$ (?P<command>.*(?:(?<=\\)\n.*)*)\n(?P<output>(?:(?!#).*\n)*?)(?P<after>(?:\n|#.*\n)*)")
_SECTION = re.compile(r"^-- (\S+) --\n", re.MULTILINE)


@dataclass(frozen=True)
class Step:
    """A command, the lines that it must write, and the blank lines and comments before the next one."""

    command: str
    expected: Lines
    after: str


@dataclass(frozen=True)
class Script:
    """A test: the comment at its head, its commands, and its files as text."""

    head: str
    steps: tuple[Step, ...]
    sections: str

    def text(self) -> str:
        """The script as it is written."""
        steps = ("".join(f"{line}\n" for line in (f"$ {s.command}", *s.expected)) + s.after for s in self.steps)
        return "".join((self.head, *steps, self.sections))


def parse(text: str) -> Script:
    """The script that a text is.

    Raises:
        ValueError: no comment comes first, there is no command, or output follows a comment.
    """
    body = _SECTION.split(text)[0]
    head, *pieces = re.split(r"^(?=\$ )", body, flags=re.MULTILINE)
    found = [_STEP.fullmatch(piece) for piece in pieces]
    if not re.fullmatch(r"#(.*\n)+", head) or not found:
        raise ValueError("a script begins with a comment that says why, and has commands")
    steps = [Step(one["command"], tuple(one["output"].splitlines()), one["after"]) for one in found if one]
    if len(steps) < len(pieces):
        raise ValueError(f"output after a comment or without a last newline:\n{pieces[found.index(None)]}")
    return Script(head, tuple(steps), text[len(body) :])


def run(
    script: Script, folder: Path, environment: Mapping[str, str], names: Mapping[str, str], limit_s: float = 300
) -> list[Lines]:
    """What each command writes: lines of stdout, of stderr behind "! ", then "[exit N]" unless N is 0.

    One `sh` runs all commands in a new folder; after `limit_s` seconds it is killed with all that it started. Values of
    `names` are shown as "$NAME", the folder as "$PWD".
    """
    work, log = folder / "work", folder / "log"
    for new in (work, log):
        new.mkdir()
    for name, text in zip(*[iter(_SECTION.split(script.sections)[1:])] * 2, strict=True):
        (work / name).parent.mkdir(parents=True, exist_ok=True)
        (work / name).write_text(text, encoding="utf-8")
    with (log / "sh").open("w", encoding="utf-8") as file:
        file.write(f"exec 2>{log}/sh.err\n")
        for i, step in enumerate(script.steps):
            file.write(f"{{ {step.command}\n}} >{log}/{i}.out 2>{log}/{i}.err; echo $? >{log}/{i}.code\n")
    variables = {**environment, **names}
    command, nothing = ["sh", log / "sh"], subprocess.DEVNULL
    with subprocess.Popen(command, cwd=work, env=variables, stdin=nothing, start_new_session=True) as shell:
        try:
            shell.wait(limit_s)
        except subprocess.TimeoutExpired:
            os.killpg(shell.pid, signal.SIGKILL)
            (log / "sh.err").write_text(f"killed after {limit_s} s", encoding="utf-8")

    def read(name: str) -> Lines:
        text = (log / name).read_text("utf-8", "replace") if (log / name).exists() else ""
        for variable, value in {"PWD": str(work), **names}.items():
            text = text.replace(value, f"${variable}")
        return tuple(text.rstrip("\n").split("\n")) if text.strip("\n") else ()

    written = []
    for i in range(len(script.steps)):
        (code,) = read(f"{i}.code") or (f"without end: {' '.join(read('sh.err'))}",)
        errors = (f"! {line}".rstrip() for line in read(f"{i}.err"))
        written.append((*read(f"{i}.out"), *errors, *([] if code == "0" else [f"[exit {code}]"])))
    return written


def report(script: Script, written: list[Lines]) -> str:
    """The first command that wrote something else, and the difference; empty if there is none."""
    for step, got in zip(script.steps, written, strict=True):
        if not matches(step.expected, got):
            difference = unified_diff(step.expected, rewritten(step.expected, got), "expected", "got", lineterm="")
            return "\n".join((f"$ {step.command}", *difference))
    return ""


def update(script: Script, written: list[Lines]) -> Script:
    """The script with what its commands write now."""
    steps = zip(script.steps, written, strict=True)
    return replace(script, steps=tuple(replace(step, expected=rewritten(step.expected, got)) for step, got in steps))
