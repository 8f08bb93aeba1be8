"""`llmc run` over ranks: whatever happens to a rank, the job ends in seconds with its error, and no process is left."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from support.engines import PicoEngine
from support.parallel.jobs import PATIENCE, Jobs, children, end_of, free_port, gone, writing

from llmc.runtime.engine_file.file import EngineFile

LONG = ("def main(", "--max-tokens", "490", "--temperature", "0", "--logit-bias", "1=-100", "--logit-bias", "0=-100")


@pytest.fixture(scope="module")
def engine(pico_engine: PicoEngine) -> Path:
    return pico_engine("int4", parallel="tp2,pp2")


@pytest.fixture
def jobs() -> Iterator[Jobs]:
    made = Jobs()
    yield made
    made.end()


def lost(rank: int, pid: int, how: str) -> str:
    name = f"rank {rank} (host {os.uname().nodename}, pid {pid})"
    return f"cannot go on without rank {rank}\n  found: {name}: {how}\n"


@pytest.mark.parametrize("profile", ["cpu-tp2", "cpu-pp2"])
def test_a_rank_is_killed_in_the_middle_of_an_answer(jobs: Jobs, engine: Path, profile: str):
    one = jobs.start("run", engine, *LONG, "--profile", profile)
    (pid,) = writing(one)
    os.kill(pid, signal.SIGKILL)
    code, said = end_of(one)
    assert (code, lost(1, pid, "killed by signal 9 (SIGKILL)") in said) == (4, True), said


def test_a_rank_is_killed_while_a_conversation_is_idle(jobs: Jobs, engine: Path, tmp_path: Path):
    """The next message says so, and ends the command."""
    template = tmp_path / "t.jinja"
    template.write_text("{% for one in messages %}{{ one.content }}{% endfor %}")
    one = jobs.start("run", engine, "--chat", "--chat-template", template, "--profile", "cpu-tp2", "--max-tokens", "3")
    assert one.stdin is not None
    one.stdin.write("x = 1\n")
    one.stdin.flush()
    (pid,) = writing(one)
    os.kill(pid, signal.SIGKILL)
    assert gone([pid])
    code, said = end_of(one, "y = 2\n")
    assert (code, lost(1, pid, "killed by signal 9 (SIGKILL)") in said) == (4, True), said


@pytest.mark.soak
def test_a_rank_is_stopped(jobs: Jobs, engine: Path):
    one = jobs.start("run", engine, *LONG, "--profile", "cpu-pp2")
    (pid,) = writing(one)
    os.kill(pid, signal.SIGSTOP)
    code, said = end_of(one)
    assert (code, lost(1, pid, "stopped or cut off, no sign of life for 5 s") in said) == (4, True), said
    assert gone([pid])


@pytest.mark.parametrize("sent", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
def test_rank_0_ends(jobs: Jobs, engine: Path, sent: signal.Signals):
    """Ctrl-C reaches all processes of the terminal."""
    one = jobs.start("run", engine, *LONG, "--profile", "cpu-tp2")
    pids = writing(one)
    (os.killpg if sent == signal.SIGINT else os.kill)(one.pid, sent)
    code, said = end_of(one)
    assert code == {signal.SIGKILL: -9, signal.SIGTERM: 143, signal.SIGINT: 130}[sent]
    assert "llmc:" not in said and gone(pids)


@pytest.mark.soak
def test_ctrl_c_while_ranks_load(jobs: Jobs, engine: Path):
    """At any moment of the start: the exit code is that of Ctrl-C, and no rank says anything."""
    for seconds in (0.02, 0.15):
        one = jobs.start("run", engine, *LONG, "--profile", "cpu-tp2")
        late = time.monotonic() + PATIENCE
        while not children(one.pid) and time.monotonic() < late:
            time.sleep(0.01)
        pids = children(one.pid)
        time.sleep(seconds)
        os.killpg(one.pid, signal.SIGINT)
        code, said = end_of(one)
        assert (code, "Error" in said) == (130, False), said
        assert gone(pids)


@pytest.mark.soak
def test_two_different_engines(jobs: Jobs, engine: Path, pico_engine: PicoEngine):
    """Before weights are read."""
    other = pico_engine("int8", parallel="tp1,tp2")
    port = free_port()
    both = [jobs.launched(i, port, "run", one, "x", "--profile", "cpu-tp2") for i, one in enumerate([engine, other])]
    for one in both:
        code, said = end_of(one)
        assert code == 3
        assert "expected the same engine on all ranks\n  found: rank 1 (host " in said


@pytest.mark.soak
def test_an_engine_that_is_damaged_or_not_there_on_one_rank(jobs: Jobs, engine: Path, tmp_path: Path):
    """A section that only its rank reads: all ranks end with its error."""
    damaged = tmp_path / "e.llmc"
    raw = bytearray(engine.read_bytes())
    with EngineFile.open(engine) as opened:
        at = raw.index(opened.section("profiles/cpu-pp2/rank-1/program.json"))
    raw[at + 20] ^= 1
    damaged.write_bytes(raw)
    port = free_port()
    both = [jobs.launched(i, port, "run", one, "x", "--profile", "cpu-pp2") for i, one in enumerate([engine, damaged])]
    for one in both:
        code, said = end_of(one)
        assert code == 3 and "to match its digest" in said, said
    torchrun = Path(sys.executable).parent / "torchrun"
    script = f'exec {sys.executable} -m llmc run "$0-$RANK" x --profile cpu-tp2'
    shutil.copy(engine, tmp_path / "two-0")
    started = time.monotonic()
    command = [torchrun, "--nproc-per-node", "2", "--no-python", "sh", "-c", script, tmp_path / "two"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE)
    assert done.returncode == 1
    assert "cannot open" in done.stderr and "two-1" in done.stderr, done.stderr
    assert time.monotonic() - started < PATIENCE


@pytest.mark.soak
def test_an_engine_that_is_changed_on_the_host_of_another_rank(jobs: Jobs, engine: Path, tmp_path: Path):
    paths = [Path(shutil.copy(engine, tmp_path / f"{i}.llmc")) for i in range(2)]
    port = free_port()
    both = [jobs.launched(i, port, "run", one, *LONG, "--profile", "cpu-tp2") for i, one in enumerate(paths)]
    writing(both[0])
    os.truncate(paths[1], paths[1].stat().st_size + 1)
    for one in both:
        code, said = end_of(one)
        assert code == 3
        assert ("replace engines by rename" in said and "rank 1 (host" in said) or one is both[1], said
