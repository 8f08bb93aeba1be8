"""The command line without an engine: exit codes, streams, flags and the texts of refusals."""

from __future__ import annotations

import dataclasses
import json
import sys
from pathlib import Path

import pytest
import typer

from llmc.cli import app as module
from llmc.cli import main
from llmc.cli.app import run
from llmc.cli.common import console, huge_pages, options, progress, texts
from llmc.cli.prompts import batch
from llmc.recipes.flags import BuildFlags
from llmc.runtime import errors
from llmc.runtime.errors import RecipeError
from llmc.runtime.sampling.params import RANGES, SamplingOptions, SamplingParams

COMMANDS = ("build", "run", "inspect", "verify", "eval", "bench", "passes", "kernels", "tune", "doctor")


def last_json(text: str) -> dict:
    return json.loads(text.rstrip("\n").split("\n")[-1])


@pytest.mark.parametrize("arguments", [[], ["--help"]])
def test_help_names_every_command(arguments: list[str], capsys: pytest.CaptureFixture[str]):
    assert run(arguments) == 0
    shown = capsys.readouterr().out
    assert all(f"\n  {name} " in shown for name in COMMANDS)
    assert "--install-completion" in shown


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_has_help(name: str, capsys: pytest.CaptureFixture[str]):
    assert run([name, "--help"]) == 0
    shown = capsys.readouterr().out
    assert f"Usage: llmc {name}" in shown
    assert "--json" in shown


def test_version(capsys: pytest.CaptureFixture[str]):
    assert run(["--version"]) == 0
    assert capsys.readouterr().out == "llmc 0.1.0\n"


def test_the_shell_completes_commands(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    monkeypatch.setenv("_LLMC_COMPLETE", "complete_bash")
    monkeypatch.setenv("COMP_WORDS", "llmc b")
    monkeypatch.setenv("COMP_CWORD", "1")
    assert run([]) == 0
    assert capsys.readouterr().out.split() == ["build", "bench"]


def test_every_flag_has_its_environment_twin():
    for name, command in typer.main.get_command(module.app).commands.items():  # type: ignore[attr-defined]
        for option in command.params:
            (long, *_), kind = option.opts, option.param_type_name
            if kind == "option" and long != "--help":
                assert option.envvar == "LLMC_" + long.removeprefix("--").replace("-", "_").upper(), (name, long)


def test_a_variable_without_effect_is_named(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    monkeypatch.setenv("LLMC_CASHE", "/tmp")
    assert run(["--version"]) == 0
    shown = capsys.readouterr()
    assert shown.out == "llmc 0.1.0\n"
    assert shown.err == "llmc: no variable LLMC_CASHE is known (did you mean 'LLMC_CACHE'?): it has no effect\n"


def test_a_build_s_flags_are_those_of_its_type():
    assert list(options.BUILD_FLAGS) == list(BuildFlags.__annotations__)
    commands = typer.main.get_command(module.app).commands  # type: ignore[attr-defined]
    for name in ("build", "passes"):
        assert {*options.BUILD_FLAGS} <= {option.name for option in commands[name].params}


def test_a_sampling_option_is_one_field():
    fields = {field.name for field in dataclasses.fields(SamplingParams)}
    assert {*RANGES} == fields - {"logit_bias"} and fields <= {*SamplingOptions.__annotations__}
    command = typer.main.get_command(module.app).commands["run"]  # type: ignore[attr-defined]
    assert fields <= {option.name for option in command.params}
    for name in RANGES:
        assert "--" + name.replace("_", "-") in {text for option in command.params for text in option.opts}


def test_the_environment_twin_works_and_the_flag_wins(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    monkeypatch.setenv("LLMC_RECIPE", "no-such-recipe")
    assert run(["passes", "absent"]) == 2
    assert "cannot find the recipe 'no-such-recipe'" in capsys.readouterr().err
    assert run(["passes", "absent", "--recipe", "other"]) == 2
    assert "cannot find the recipe 'other'" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["bild"], "No such command 'bild'. Did you mean 'build'?\n  try: llmc --help"),
        (["run", "e.llmc", "x", "--max-token", "3"], "--max-tokens"),
        (["run", "e.llmc", "x", "--max-tokens", "many"], "Invalid value for '--max-tokens'"),
        (["run", "e.llmc"], "expected a prompt\n  try: PROMPT, - for stdin, --prompts FILE, or --chat"),
        (["run", "e.llmc", "x", "--prompts", "f"], "expected PROMPT or --prompts, not both"),
        (["run", "e.llmc", "x", "--system", "s"], "expected --chat with --system"),
        (["run", "e.llmc", "x", "--verify", "all"], "expected --verify header or full\n  found: all"),
        (
            ["run", "e.llmc", "x", "--logit-bias", "a=1"],
            "expected --logit-bias TOKEN_ID=NUMBER, such as 42=-5\n  found: 'a=1'",
        ),
        (["run", "e.llmc", "--prompts", "absent.jsonl"], "cannot read absent.jsonl\n  found: No such file"),
        (["eval", "e.llmc", "--text", "absent.txt"], "cannot read absent.txt"),
        (["build", "absent"], "Missing option '--output'"),
        (
            ["build", "absent", "-o", "x.llmc", "--quantize", "in4"],
            "expected a weight format, found 'in4' (did you mean 'int4'?)",
        ),
        (["build", "absent", "-o", "x.llmc", "--target", "cpu,gpu"], "expected a target, found 'gpu'"),
        (
            ["build", "absent", "-o", "x.llmc", "--target", "h10"],
            "expected a target, found 'h10' (did you mean 'h100'?), known: cpu",
        ),
        (["build", "absent", "-o", "x.llmc", "--max-batch", "0"], "expected max_batch from 1 to 4096, found 0"),
    ],
)
def test_usage_errors_have_exit_code_2(arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]):
    assert run(arguments) == 2
    shown = capsys.readouterr()
    assert message in shown.err
    assert shown.out == ""
    assert run([*arguments, "--json"]) == 2
    assert message in last_json(capsys.readouterr().out)["error"]["message"]


def test_the_hint_names_the_command(capsys: pytest.CaptureFixture[str]):
    run(["run", "e.llmc", "x", "--bogus"])
    said = "cannot read the command line: No such option: --bogus"
    assert capsys.readouterr().err == f"llmc: {said}\n  try: llmc run --help\n"


@pytest.mark.parametrize(
    ("error", "code", "text"),
    [
        (errors.VerifyError("asked", found="this", fix="that"), 1, "llmc: asked\n  found: this\n  try: that\n"),
        (errors.RecipeError("asked"), 2, "llmc: asked\n"),
        (errors.CheckpointError("asked"), 3, "llmc: asked\n"),
        (errors.EngineError("asked"), 3, "llmc: asked\n"),
        (errors.Unsupported("asked"), 3, "llmc: asked\n"),
        (errors.ResourceError("asked"), 4, "llmc: asked\n"),
        (MemoryError(), 4, "llmc: cannot go on: this process ran out of memory\n"),
        (
            OSError(28, "No space left on device"),
            4,
            "llmc: cannot go on: the system refused: [Errno 28] No space left on device\n",
        ),
        (
            KeyError("x"),
            70,
            "llmc: cannot go on: a bug in llmc: KeyError: 'x'\n  try: LLMC_DEBUG=1 for the traceback\n",
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

    monkeypatch.setattr(module, "app", fail)
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

    monkeypatch.setattr(module, "app", fail)
    run(["run", "e.llmc", "--", "--json"])
    assert capsys.readouterr().out == ""


def test_interrupts_and_termination_have_their_codes(monkeypatch: pytest.MonkeyPatch):
    def interrupted(_word: str) -> None:
        raise KeyboardInterrupt

    small = typer.Typer(rich_markup_mode=None)
    small.command()(interrupted)
    monkeypatch.setattr(module, "app", small)
    assert run(["x"]) == 130

    def terminated(**_: object) -> None:
        module._terminate(15, None)

    monkeypatch.setattr(module, "app", terminated)
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
        "  try: pip install 'llmc[build]'\n"
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
    with bars.stage("outer", 10) as outer, bars.stage("inner") as inner:
        inner(5)
        outer(10)
    with bars.stage("next"):
        pass
    assert "outer" in capsys.readouterr().err


def test_prompt_files_are_read(tmp_path: Path):
    path = tmp_path / "p.jsonl"
    path.write_text('{"prompt": "a", "max_tokens": 3}\n\n{"tokens": [1, 2], "logit_bias": {"5": 1.5}}\n')
    assert batch.read(str(path)) == [
        batch.PromptLine("a", {"max_tokens": 3}),
        batch.PromptLine((1, 2), {"logit_bias": {5: 1.5}}),
    ]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (
            '{"prompt": "a", "max_token": 3}',
            "expected a known key at p:1\n  found: 'max_token' (did you mean 'max_tokens'?)",
        ),
        ('{"prompt": "a", "tokens": [1]}', 'expected an object with either "prompt" or "tokens" at p:1'),
        ('"a"', 'expected an object with either "prompt" or "tokens" at p:1'),
        ('{"prompt": 3}', 'expected "prompt" as a text at p:1'),
        ('{"tokens": [1.5]}', 'expected "tokens" as a list of whole numbers at p:1'),
        ('{"tokens": [true]}', 'expected "tokens" as a list of whole numbers at p:1'),
        ('{"tokens": [1], "logit_bias": {"x": 1}}', "expected token ids in \"logit_bias\" at p:1\n  found: 'x'"),
        ('{"prompt": "a"', "p:1"),
    ],
)
def test_prompt_files_are_refused_by_line(tmp_path: Path, line: str, message: str, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    Path("p").write_text(line + "\n")
    with pytest.raises(RecipeError) as caught:
        batch.read("p")
    assert message in str(caught.value)


def test_texts_must_be_utf8(tmp_path: Path):
    (tmp_path / "t").write_bytes(b"ab\xff")
    with pytest.raises(RecipeError, match=r"expected UTF-8 text in .*\n  found: byte 2"):
        texts.read_text(str(tmp_path / "t"))
