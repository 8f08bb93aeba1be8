"""Command lines of `llmc` over ranks as processes, and what is left of them."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

PATIENCE = 60
"""Seconds after which a test that waits has failed."""
Run = subprocess.Popen[str]


def hear_ctrl_c() -> None:
    """In a child: SIGINT is heard, also if the tests run in the background of a shell that ignores it."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


class Jobs:
    """Command lines of `llmc`, each in a process group of its own; whatever is left ends with the test."""

    def __init__(self) -> None:
        self._running: list[Run] = []

    def start(self, *arguments: object, prefix: Sequence[object] = (), **variables: str) -> Run:
        pipe = subprocess.PIPE
        one = subprocess.Popen(
            [*map(str, prefix), sys.executable, "-m", "llmc", *map(str, arguments)],
            stdin=pipe,
            stdout=pipe,
            stderr=pipe,
            text=True,
            env={**os.environ, **variables},
            process_group=0,
            preexec_fn=hear_ctrl_c,
        )
        self._running.append(one)
        return one

    def launched(
        self,
        rank: int,
        port: int,
        *arguments: object,
        ranks: int = 2,
        address: str = "localhost",
        prefix: Sequence[object] = (),
    ) -> Run:
        """A rank as a launcher starts it."""
        place = {"RANK": str(rank), "WORLD_SIZE": str(ranks), "MASTER_ADDR": address, "MASTER_PORT": str(port)}
        return self.start(*arguments, prefix=prefix, **place)

    def end(self) -> None:
        for one in self._running:
            for pid in (one.pid, *children(one.pid)):
                if alive(pid):
                    os.kill(pid, signal.SIGKILL)
            one.communicate()


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
    assert "Traceback" not in said, said
    return one.returncode, said


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as server:
        return server.getsockname()[1]
