"""`llmc run` over ranks: whatever happens to a rank, the job ends in seconds with its error, and no process is left."""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest
from support.engines import PicoEngine

from llmc.runtime.engine_file.file import EngineFile

PATIENCE = 60
LONG = ("def main(", "--max-tokens", "490", "--temperature", "0", "--logit-bias", "1=-100", "--logit-bias", "0=-100")
Run = subprocess.Popen[str]


@pytest.fixture(scope="module")
def engine(pico_engine: PicoEngine) -> Path:
    return pico_engine("int4", parallel="tp2,pp2")


class Jobs:
    """Command lines of `llmc`, each in a process group of its own; whatever is left ends with the test."""

    def __init__(self) -> None:
        self._running: list[Run] = []

    def start(self, *arguments: object, **variables: str) -> Run:
        pipe = subprocess.PIPE
        command = [sys.executable, "-m", "llmc", *map(str, arguments)]
        one = subprocess.Popen(
            command,
            stdin=pipe,
            stdout=pipe,
            stderr=pipe,
            text=True,
            env={**os.environ, **variables},
            process_group=0,
        )
        self._running.append(one)
        return one

    def launched(self, rank: int, port: int, *arguments: object, ranks: int = 2) -> Run:
        """A rank as a launcher starts it."""
        place = {"RANK": str(rank), "WORLD_SIZE": str(ranks), "MASTER_ADDR": "localhost", "MASTER_PORT": str(port)}
        return self.start(*arguments, **place)

    def end(self) -> None:
        for one in self._running:
            for pid in (one.pid, *children(one.pid)):
                if alive(pid):
                    os.kill(pid, signal.SIGKILL)
            one.communicate()


@pytest.fixture
def jobs() -> Iterator[Jobs]:
    made = Jobs()
    yield made
    made.end()


def children(pid: int) -> list[int]:
    try:
        tasks = list(Path(f"/proc/{pid}/task").iterdir())
        return [int(one) for task in tasks for one in (task / "children").read_text().split()]
    except OSError:
        return []


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except OSError:
        return False


def gone(pids: Sequence[int]) -> bool:
    late = time.monotonic() + PATIENCE
    while any(map(alive, pids)) and time.monotonic() < late:
        time.sleep(0.05)
    return not any(map(alive, pids))


def writing(one: Run) -> list[int]:
    """The ranks that it has started, once it has written something."""
    assert one.stdout is not None
    assert one.stdout.read(1)
    return children(one.pid)


def end_of(one: Run, given: str | None = None) -> tuple[int, str]:
    """Exit code and stderr."""
    _, said = one.communicate(given, timeout=PATIENCE)
    assert "Traceback" not in said
    return one.returncode, said


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as server:
        return server.getsockname()[1]


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


def test_ctrl_c_while_ranks_load(jobs: Jobs, engine: Path):
    """At any moment of the start: the exit code is that of Ctrl-C, and no rank says anything."""
    for seconds in (0.3, 0.6, 0.9):
        one = jobs.start("run", engine, *LONG, "--profile", "cpu-tp2")
        late = time.monotonic() + PATIENCE
        while not children(one.pid) and time.monotonic() < late:
            time.sleep(0.01)
        pids = children(one.pid)
        time.sleep(seconds / 3)
        os.killpg(one.pid, signal.SIGINT)
        code, said = end_of(one)
        assert (code, "Error" in said) == (130, False), said
        assert gone(pids)


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


def run_json(one: Run) -> list[int]:
    out, said = one.communicate(timeout=PATIENCE)
    assert one.returncode == 0, said
    return json.loads(out)["token_ids"]


def test_a_launcher(jobs: Jobs, engine: Path):
    """Two processes give the tokens of ranks that are started here; a rank above 0 leaves stdin to rank 0."""
    arguments = ("run", engine, "-", "--profile", "cpu-tp2", "--max-tokens", "12", "--temperature", "0", "--json")
    port = free_port()
    both = [jobs.launched(rank, port, *arguments) for rank in range(2)]
    out, said = both[0].communicate("def main(", timeout=PATIENCE)
    assert both[0].returncode == 0, said
    assert end_of(both[1]) == (0, "")
    here = jobs.start(*arguments)
    wanted, _ = here.communicate("def main(", timeout=PATIENCE)
    assert json.loads(out)["token_ids"] == json.loads(wanted)["token_ids"]
