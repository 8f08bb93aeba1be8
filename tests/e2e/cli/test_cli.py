"""Runs of the bundled checkpoint's engine: sampling, signals, a terminal; `tests/scripts/cli` has what text shows."""

from __future__ import annotations

import json
import os
import pty
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO

import pytest
from support.commands import Outcome
from support.engines import PicoEngine
from support.paths import PICO

CHAT_TEMPLATE = (
    "{{ bos_token }}{% for m in messages %}<|{{ 'assistant' if m.role == 'assistant' else 'user' }}|>"
    "{{ m.content }}<|end_of_turn|>{% endfor %}{% if add_generation_prompt %}<|assistant|>{% endif %}"
)
Call = Callable[..., Outcome]


@pytest.fixture
def engine(pico_engine: PicoEngine) -> Path:
    return pico_engine("int8")


def start(*arguments: object) -> subprocess.Popen[bytes]:
    """llmc with signals as at a terminal: a shell's background jobs, the tests maybe one of them, ignore SIGINT."""
    command = [sys.executable, "-m", "llmc", *map(str, arguments)]
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    finally:
        signal.signal(signal.SIGINT, before)


def at_a_terminal(arguments: list[str], answers: list[bytes]) -> tuple[int, str]:
    """Exit code and everything a terminal shows, where each answer is typed at the next `> `."""
    child, terminal = pty.fork()
    if child == 0:
        os.execv(sys.executable, [sys.executable, "-m", "llmc", *arguments])
    shown, seen = b"", 0
    with open(terminal, "rb+", buffering=0) as stream:
        while piece := _read(stream):
            shown += piece
            if answers and b"> " in shown[seen:]:
                seen = len(shown)
                stream.write(answers.pop(0))
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), shown.decode()


def _read(stream: BinaryIO) -> bytes:
    try:
        return stream.read(4096)
    except OSError:  # how Linux says that the other end is closed
        return b""


def long_run(engine: Path) -> subprocess.Popen[bytes]:
    """A run that writes for a second or more."""
    return start("run", engine, "x", "--max-tokens", 500, "--logit-bias", "1=-100", "--stop", "never to be seen")


def test_sampling_flags_reach_the_sampler(call: Call, engine: Path):
    def ids(*flags: object) -> list[int]:
        return call("run", engine, "class ", "--max-tokens", 12, "--json", *flags).json["token_ids"]

    hot = ("--temperature", 1.5)
    assert ids(*hot, "--seed", 1) == ids(*hot, "--seed", 1) != ids(*hot, "--seed", 2)
    greedy = ids("--temperature", 0)
    assert ids(*hot, "--top-k", 1) == ids(*hot, "--top-p", 0.0001) == ids(*hot, "--min-p", 1) == greedy
    assert ids("--logit-bias", "77=100") == [77] * 12
    pushed = ("--logit-bias", "77=12")
    assert ids(*pushed).count(77) == 12 > ids(*pushed, "--frequency-penalty", 2).count(77)
    assert ids("--temperature", 0, "--presence-penalty", 2) != greedy
    assert len(set(ids("--temperature", 0, "--repetition-penalty", 50))) == 12


def test_stop_ends_before_its_text(call: Call, engine: Path):
    whole = call("run", engine, "import ", "--max-tokens", 20, "--temperature", 0, "--json").json["text"]
    stop = whole[8:10]
    outcome = call("run", engine, "import ", "--max-tokens", 20, "--temperature", 0, "--stop", stop, "--json").json
    assert outcome["text"] == whole[: whole.index(stop)]
    assert outcome["finish_reason"] == "stop"


def test_logprobs_are_shown_if_asked_for(call: Call, engine: Path):
    found = call("run", engine, "import ", "--max-tokens", 3, "--logprobs", 2, "--json").json["logprobs"]
    assert [len(one["top"]) for one in found] == [2, 2, 2]
    assert all(one["logprob"] <= 0 for one in found)


def test_chat_holds_a_conversation_from_a_pipe_or_a_terminal(call: Call, tmp_path: Path):
    shutil.copytree(PICO, tmp_path / "c")
    (tmp_path / "c/chat_template.jinja").write_text(CHAT_TEMPLATE)
    path = tmp_path / "chat.llmc"
    assert call("build", tmp_path / "c", "-o", path, "--quantize", "int4").code == 0
    arguments = ("run", path, "--chat", "--max-tokens", 3, "--temperature", 0, "--json")

    out, err = start(*arguments).communicate(b"hi\r\n\nand you?\n")
    first, second = (json.loads(line) for line in out.decode().splitlines())
    assert second["prompt_tokens"] > first["prompt_tokens"] + first["completion_tokens"], err

    code, shown = at_a_terminal([*map(str, arguments[:-1])], [b"hi\r", b"\x04"])
    assert code == 0 and shown.count("> ") == 2 and "3 tokens at" in shown, shown


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_signals_keep_what_was_printed(engine: Path, number: signal.Signals, code: int):
    with long_run(engine) as process:
        assert process.stdout is not None
        first = process.stdout.read(1)
        process.send_signal(number)
        out, err = process.communicate(timeout=60)
    assert process.returncode == code
    assert first + out
    assert b"Traceback" not in err
