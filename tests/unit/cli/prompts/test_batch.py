"""A file of prompts beside a terminal: progress goes to stderr, and results only to stdout."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from support.commands import Outcome
from support.engines import PicoEngine


@pytest.fixture
def prompts(tmp_path: Path) -> Path:
    path = tmp_path / "p.jsonl"
    path.write_text('{"prompt": "a", "max_tokens": 1}\n' * 3)
    return path


@pytest.mark.parametrize(
    ("streams", "flags", "shown"),
    [
        (["err"], [], True),
        (["err"], ["--json"], False),
        (["err", "out"], [], False),  # results at a terminal show by themselves how far it is
        ([], [], False),
    ],
)
def test_progress_is_shown_on_stderr(
    call: Callable[..., Outcome],
    pico_engine: PicoEngine,
    prompts: Path,
    monkeypatch: pytest.MonkeyPatch,
    streams: list[str],
    flags: list[str],
    shown: bool,
):
    engine = pico_engine("int8")
    monkeypatch.setenv("TERM", "xterm")
    for name in streams:
        monkeypatch.setattr(getattr(sys, f"std{name}"), "isatty", lambda: True)
    outcome = call("run", engine, "--prompts", prompts, *flags)
    assert [json.loads(line)["index"] for line in outcome.out.splitlines()] == [0, 1, 2]
    assert ("prompts" in outcome.err) is shown
