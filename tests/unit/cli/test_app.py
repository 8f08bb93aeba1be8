"""The command line without an engine: exit codes, flags, progress; `tests/scripts/cli` has its usage errors."""

from __future__ import annotations

import dataclasses
import json
import re
import shlex
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import typer
from support.engines import PicoEngine
from typer.core import TyperGroup

from llmc.cli import app as module
from llmc.cli import main
from llmc.cli.app import run
from llmc.cli.common import complete, console, huge_pages, options, progress
from llmc.cli.common.examples import EXAMPLES
from llmc.recipes.flags import BuildFlags
from llmc.runtime import errors
from llmc.runtime.environment import VARIABLES
from llmc.runtime.errors import RecipeError
from llmc.runtime.sampling.params import RANGES, SamplingOptions, SamplingParams


def last_json(text: str) -> dict:
    return json.loads(text.rstrip("\n").split("\n")[-1])


def test_only_settings_of_the_machine_have_a_variable():
    """`LLMC_MAX_TOKENS`, set for `run`, made `eval` score 5 tokens."""
    found = set()
    for name, command in typer.main.get_command(module.application()).commands.items():  # type: ignore[attr-defined]
        for option in command.params:
            if option.envvar is not None:
                assert option.envvar == "LLMC_" + option.name.upper() and not option.multiple, (name, option.name)
                found.add(option.envvar)
    assert found == {*VARIABLES} - {"LLMC_CACHE"}


def test_every_flag_shows_its_default():
    commands = typer.main.get_command(module.application()).commands  # type: ignore[attr-defined]
    for name, command in {**commands, **commands["cache"].commands}.items():
        context = typer.Context(command, info_name=name)
        for option in command.get_params(context):
            if option.param_type_name == "option" and "--help" not in option.opts:
                record = option.get_help_record(context)
                assert record is not None and re.search(r"\[(default: \S|required)", record[1]), (name, record)


def test_every_command_has_a_group_and_examples(capsys: pytest.CaptureFixture[str]):
    commands = typer.main.get_command(module.application()).commands  # type: ignore[attr-defined]
    assert {*EXAMPLES} == {"", *commands}
    for name, command in commands.items():
        assert command.rich_help_panel in ("Build", "Run", "Judge", "Machine"), name
        assert run([name, "-h"]) == 0
        short = capsys.readouterr().out
        assert run([name, "--help"]) == 0
        assert capsys.readouterr().out == short
        for does, line in EXAMPLES[name]:
            assert f"# {does}\n  {line}\n" in short


@pytest.mark.parametrize("line", [line for lines in EXAMPLES.values() for _, line in lines])
def test_examples_are_command_lines_of_llmc(line: str):
    """They are parsed, and not run: a flag or a command that is gone fails here."""
    program, *words = shlex.split(line.partition(" > ")[0])
    group: Any = typer.main.get_command(module.application())
    assert program == "llmc"
    context = group.make_context("llmc", [*words])
    while words and isinstance(group, TyperGroup):
        _, command, words = group.resolve_command(context, words)
        assert command is not None
        context, group = command.make_context("llmc", words, parent=context), command


@pytest.mark.parametrize(
    ("values", "incomplete", "expected"),
    [
        (complete.formats, "nv", ["nvfp4"]),
        (complete.precisions, "", ["none", "fp8"]),
        (complete.recipes, "cpu-int", ["cpu-int4", "cpu-int8"]),
        (complete.targets, "cpu,sm_12", ["cpu,sm_120"]),
        (complete.targets, "h200,h", ["h200,h100"]),
        (complete.targets, "cpu,n", ["cpu,native"]),
        (complete.gpus, "rtx", ["rtx3090", "rtx4090", "rtx5090", "rtxpro6000"]),
        (complete.gpus, "n", ["native"]),
        (complete.chips, "h", ["h100", "h200"]),
    ],
)
def test_completion_offers_values(values: Callable[[str], list[str]], incomplete: str, expected: list[str]):
    assert values(incomplete) == expected


def test_completion_offers_what_is_at_hand(pico_engine: PicoEngine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine.yaml").touch()
    assert complete.recipes("m") == ["mine.yaml"]
    engine = str(pico_engine("int4"))
    for of in ({"params": {"engine": engine}, "args": []}, {"params": {"engine": None}, "args": ["mine.yaml", engine]}):
        assert complete.profiles(SimpleNamespace(**of), "") == ["cpu"]
    for none in ({}, {"engine": "absent"}, {"engine": "mine.yaml"}):
        assert complete.profiles(SimpleNamespace(params=none, args=[]), "") == []


def test_a_build_s_flags_are_those_of_its_type():
    assert list(options.BUILD_FLAGS) == list(BuildFlags.__annotations__)
    commands = typer.main.get_command(module.application()).commands  # type: ignore[attr-defined]
    for name in ("build", "passes"):
        assert {*options.BUILD_FLAGS} <= {option.name for option in commands[name].params}


def test_a_sampling_option_is_one_field():
    fields = {field.name for field in dataclasses.fields(SamplingParams)}
    assert {*RANGES} == fields - {"logit_bias"} and fields <= {*SamplingOptions.__annotations__}
    command = typer.main.get_command(module.application()).commands["run"]  # type: ignore[attr-defined]
    assert fields <= {option.name for option in command.params}
    for name in RANGES:
        assert "--" + name.replace("_", "-") in {text for option in command.params for text in option.opts}


@pytest.mark.parametrize(
    ("error", "code", "text"),
    [
        (errors.VerifyError("asked", found="this", fix="that"), 1, "llmc: asked\n  found: this\n  try: that\n"),
        (errors.RecipeError("asked"), 2, "llmc: asked\n"),
        (errors.CheckpointError("asked"), 3, "llmc: asked\n"),
        (errors.EngineError("asked"), 3, "llmc: asked\n"),
        (errors.Unsupported("asked"), 3, "llmc: asked\n"),
        (errors.ResourceError("asked"), 4, "llmc: asked\n"),
        (
            MemoryError(),
            4,
            "llmc: cannot go on: too little memory\n  found: MemoryError\n"
            "  try: a higher limit, a smaller model or batch, or a machine with more memory\n",
        ),
        (
            OSError(28, "No space left on device"),
            4,
            "llmc: cannot go on: no room for a file\n  found: No space left on device\n"
            "  try: free some space, or a folder on another disk\n",
        ),
        (
            PermissionError(13, "Permission denied", "/cache/kernels"),
            4,
            "llmc: cannot use /cache/kernels\n  found: Permission denied\n",
        ),
        (
            KeyError("x"),
            70,
            "llmc: cannot go on: a bug in llmc: KeyError: 'x'\n  try: --debug 1 for the traceback\n",
        ),
    ],
)
def test_errors_become_exit_codes(
    error: Exception,
    code: int,
    text: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
):
    def fail(**_: object) -> None:
        raise error

    monkeypatch.setattr(module, "application", lambda _: fail)
    monkeypatch.delenv("LLMC_DEBUG", raising=False)
    assert run([]) == code
    assert capsys.readouterr() == ("", text)

    assert run(["--json"]) == code
    found = last_json(capsys.readouterr().out)["error"]
    assert found["exit_code"] == code
    assert f"llmc: {found['message']}\n" == text

    monkeypatch.setenv("LLMC_DEBUG", "1")
    assert run([]) == code
    assert "Traceback (most recent call last)" in capsys.readouterr().err


def test_after_two_dashes_nothing_is_a_flag(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    def fail(**_: object) -> None:
        raise RecipeError("asked")

    monkeypatch.setattr(module, "application", lambda _: fail)
    run(["run", "e.llmc", "--", "--json"])
    assert capsys.readouterr().out == ""


def test_interrupts_and_termination_have_their_codes(monkeypatch: pytest.MonkeyPatch):
    def interrupted(_word: str) -> None:
        raise KeyboardInterrupt

    small = typer.Typer(rich_markup_mode=None)
    small.command()(interrupted)
    monkeypatch.setattr(module, "application", lambda _: small)
    assert run(["x"]) == 130

    def terminated(**_: object) -> None:
        module._terminate(15, None)

    monkeypatch.setattr(module, "application", lambda _: terminated)
    assert run([]) == 143


def test_an_interrupt_while_llmc_starts_is_no_traceback(monkeypatch: pytest.MonkeyPatch):
    def interrupted(_arguments: list[str]) -> int:
        raise KeyboardInterrupt

    monkeypatch.setattr(module, "run", interrupted)
    monkeypatch.setattr(huge_pages, "_allowed", False)  # and put back afterwards: these tests must not restart
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == 130


@pytest.mark.parametrize("command", [["build", "c", "-o", "e.llmc"], ["passes", "c"]])
def test_a_missing_extra_gives_the_pip_line(
    command: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    monkeypatch.setitem(sys.modules, "torch", None)
    assert run(command) == 4
    assert capsys.readouterr().err == (
        f"llmc: cannot use llmc {command[0]} without the extra 'build'\n  found: not installed: torch\n"
        "  try: pip install '.[build]' in a checkout of llmc\n"
    )


def test_tables_align_words_left_and_numbers_right():
    assert console.table([("name", "n"), ("a", "7"), ("long", "12")]) == "  name   n\n  a      7\n  long  12"


def test_sizes_are_for_people():
    assert [console.size(n) for n in (0, 1023, 1024, 3 << 20, 5 << 40)] == [
        "0 B",
        "1023 B",
        "1.00 KiB",
        "3.00 MiB",
        "5120.00 GiB",
    ]


def test_progress_off_a_terminal_is_a_heartbeat(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    now = 0.0
    monkeypatch.setattr(progress.time, "monotonic", lambda: now)
    with progress.for_terminal(quiet=False).stage("weights", 4096) as advance:
        advance(1024)
        now = 31.0
        advance(1024)
        advance(1024)
    assert capsys.readouterr().err == "weights: 2.00 KiB of 4.00 KiB\n"


def test_progress_with_json_is_silent(capsys: pytest.CaptureFixture[str]):
    with progress.for_terminal(quiet=True).stage("weights", 10) as advance:
        advance(10)
    assert capsys.readouterr() == ("", "")


def test_progress_on_a_terminal_nests(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    monkeypatch.setenv("TERM", "xterm")
    bars = progress.for_terminal(quiet=False)
    assert isinstance(bars, progress._Bars)
    with bars.stage("outer", 10) as outer, bars.stage("inner", unit="kernels") as inner:
        inner(5)
        outer(10)
    with bars.stage("next"):
        pass
    assert "outer" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("done", "total", "unit", "text"),
    [
        (0, None, "B", ""),
        (0, None, "kernels", ""),
        (0, 12, "kernels", "0 of 12 kernels"),
        (3, None, "kernels", "3 kernels"),
        (1 << 20, 1 << 30, "B", "1.00 MiB of 1.00 GiB"),
        (1 << 20, None, "B", "1.00 MiB"),
    ],
)
def test_progress_never_shows_what_is_not_known(done: int, total: int | None, unit: str, text: str):
    """It was `0/? bytes ?`."""
    assert progress.counts(done, total, unit) == text


def test_time_that_is_over_at_the_very_end_changes_nothing(capsys: pytest.CaptureFixture[str]):
    """Python takes back its handlers before it ends, and then SIGXCPU killed a command that was done."""
    assert run(["--version"]) == 0 and capsys.readouterr().out
    assert signal.getsignal(signal.SIGXCPU) == signal.SIG_IGN
