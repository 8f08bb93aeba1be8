"""A user's own limits on processes: a good build is built, or ends with exit code 4 and the limit's name."""

from __future__ import annotations

import resource
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from support.paths import PICO

from llmc.compiler.checkpoint import tokenizer_check
from llmc.runtime.errors import CheckpointError, LlmcError, ResourceError
from llmc.runtime.guard import shortage

BUILD = ("build", str(PICO), "-o", "out.llmc")


def llmc(folder: Path, arguments: tuple[str, ...], **limits: int) -> subprocess.CompletedProcess[str]:
    def limit() -> None:
        for name, most in {**limits, "CORE": 0}.items():
            resource.setrlimit(getattr(resource, f"RLIMIT_{name}"), (most, most))

    command = [sys.executable, "-m", "llmc", *arguments]
    return subprocess.run(command, cwd=folder, preexec_fn=limit, capture_output=True, text=True, check=False)


@pytest.mark.parametrize("limits", ({"AS": 3_000_000 << 10}, {"CPU": 50}), ids=("ulimit -v", "ulimit -t"))
def test_limits_below_llmcs_own_are_kept(limits: dict[str, int], tmp_path: Path):
    """The worker that checks a tokenizer raised its limits: exit 3, a traceback, and blame on tokenizer.json."""
    done = llmc(tmp_path, BUILD, **limits)
    assert done.returncode == 0, done.stderr


def test_too_little_address_space_is_exit_4(tmp_path: Path):
    done = llmc(tmp_path, BUILD, AS=1_000_000 << 10)
    assert done.returncode == 4, done.stderr
    assert "llmc: cannot use llmc build: too little memory\n  found: ulimit -v 1000000\n" in done.stderr


def test_too_little_processor_time_is_exit_4(tmp_path: Path):
    """It was exit 137 without a word; the time of two commands is used up by the imports alone."""
    done = llmc(tmp_path, BUILD, CPU=2)
    assert done.returncode == 4, done.stderr
    assert "the processor time that this process may use is over\n  found: ulimit -t 2\n" in done.stderr
    assert list(tmp_path.iterdir()) == []


ENDINGS = {
    "llmc's time": ((), -signal.SIGXCPU, "", CheckpointError, "it used up its processor time"),
    "the user's time": (("CPU",), -signal.SIGXCPU, "", ResourceError, "SIGXCPU"),
    "killed": ((), -signal.SIGKILL, "", ResourceError, "probably for lack of memory"),
    "llmc's memory": ((), -signal.SIGABRT, "memory allocation of 9 bytes failed", CheckpointError, "SIGABRT: memory"),
    "the user's memory": (("AS",), -signal.SIGABRT, "memory allocation of 9 bytes failed", ResourceError, "memory"),
    "no thread": ((), 1, "RuntimeError: can't start new thread", ResourceError, "processes and threads"),
    "a stack": ((), -signal.SIGSEGV, "", CheckpointError, "SIGSEGV"),
}


@pytest.mark.parametrize("case", ENDINGS.values(), ids=ENDINGS)
def test_a_limit_of_the_users_is_not_blamed_on_the_file(
    case: tuple[tuple[str, ...], int, str, type[LlmcError], str], monkeypatch: pytest.MonkeyPatch
):
    users, code, said, kind, found = case
    monkeypatch.setattr(shortage, "limit_of", lambda _: None)
    error = tokenizer_check._ending("tokenizer.json", users, code, said)
    assert type(error) is kind and found in str(error)


def test_a_real_limit_is_found():
    code = "import resource as r; r.setrlimit(r.RLIMIT_AS, (5 << 30,) * 2); from llmc.runtime.guard import limits; "
    code += "print(limits.limit_of('AS'), limits.lower_limit('AS', 9 << 30, 9 << 30), r.getrlimit(r.RLIMIT_AS))"
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert said.split(" ", 2)[:2] == [str(5 << 30), "True"] and str((5 << 30, 5 << 30)) in said
