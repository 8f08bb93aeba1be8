"""What a terminal shows until a command has something to say."""

from __future__ import annotations

import time
from types import SimpleNamespace

import pytest

from llmc.cli.common import console

ERASED = "\r\x1b[K"


@pytest.fixture(autouse=True)
def terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(console, "at_terminal", lambda: True)
    monkeypatch.setattr(console, "_PATIENCE_S", 0.01)
    monkeypatch.setattr(console, "_starting", None)


def shown(capsys: pytest.CaptureFixture[str]) -> str:
    """What stderr has once the word is there; it comes within two seconds, or there is none."""
    text, until = "", time.monotonic() + 2
    while not text and time.monotonic() < until:
        time.sleep(0.01)
        text += capsys.readouterr().err
    return text


def test_a_slow_command_says_that_it_starts_until_it_says_more(capsys: pytest.CaptureFixture[str]):
    console.starting()
    assert shown(capsys) == "llmc: starting ..."
    console.note("a")
    console.out("b")
    console.begin()
    found = capsys.readouterr()
    assert (found.err, found.out) == (f"{ERASED}a\n", "b\n")


def test_a_result_takes_its_place_too(capsys: pytest.CaptureFixture[str]):
    console.starting()
    assert shown(capsys)
    console.out("b")
    found = capsys.readouterr()
    assert (found.err, found.out) == (ERASED, "b\n")


def test_a_fast_command_shows_nothing_of_it(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(console, "_PATIENCE_S", 60)
    console.starting()
    console.begin()
    assert capsys.readouterr().err == ""


def test_a_pipe_gets_nothing_of_it(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(console, "at_terminal", lambda: False)
    console.starting()
    time.sleep(0.05)
    assert capsys.readouterr().err == ""


def test_it_does_not_mix_with_what_a_user_types(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch):
    for terminal, said in ((True, ""), (False, "llmc: starting ...")):
        monkeypatch.setattr("sys.stdin", SimpleNamespace(isatty=lambda terminal=terminal: terminal))
        monkeypatch.setattr(console, "_starting", None)
        console.starting(typed=True)
        assert ("" if console._starting is None else shown(capsys)) == said
