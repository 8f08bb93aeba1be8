"""Two network namespaces as two hosts, for tests of jobs that cross them; skips where they cannot be made."""

from __future__ import annotations

import os
import shutil
import subprocess
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

PATIENCE = 40


@dataclass(frozen=True)
class Host:
    """A network namespace with a namespace of processes."""

    name: str
    address: str
    cable: str
    process: int

    @property
    def enter(self) -> list[str]:
        """What a command line begins with to run there."""
        return ["nsenter", "-t", str(self.process), "-n", "-p", "-m"]


def namespaces() -> str:
    """Why no network namespaces can be made here; "" if they can."""
    if shutil.which("ip") is None or shutil.which("nsenter") is None:
        return "needs ip and nsenter"
    command = ["unshare", "--net", "--pid", "--fork", "--mount-proc", "true"]
    done = subprocess.run(command, capture_output=True, text=True)
    return f"needs the right to make namespaces: {done.stderr.strip()}" if done.returncode else ""


@contextmanager
def two_hosts() -> Iterator[Sequence[Host]]:
    """Two network namespaces with a cable between them, at 10.93.0.1 and 10.93.0.2."""
    if reason := namespaces():
        pytest.skip(reason)
    names = [f"llmc-{os.getpid()}-{i}" for i in range(2)]
    ends = [f"v{os.getpid() % 100000}x{i}" for i in range(2)]

    def ip(*words: str) -> None:
        subprocess.run(["ip", *words], check=True, capture_output=True)

    held = []
    try:
        for name in names:
            ip("netns", "add", name)
        ip("link", "add", ends[0], "netns", names[0], "type", "veth", "peer", "name", ends[1], "netns", names[1])
        for i, (name, end) in enumerate(zip(names, ends, strict=True)):
            ip("-n", name, "addr", "add", f"10.93.0.{i + 1}/24", "dev", end)
            ip("-n", name, "link", "set", end, "up")
            ip("-n", name, "link", "set", "lo", "up")
        # a process that keeps a name space of processes: ranks of one host see each other in its /proc, others do not
        hold = ["unshare", "--pid", "--fork", "--kill-child", "--mount-proc", "sleep", "600"]
        held = [subprocess.Popen(["ip", "netns", "exec", name, *hold]) for name in names]
        yield [
            Host(name, f"10.93.0.{i + 1}", end, _first_child(one.pid))
            for i, (name, end, one) in enumerate(zip(names, ends, held, strict=True))
        ]
    finally:
        for one in held:
            one.kill()
            one.wait()
        for name in names:
            subprocess.run(["ip", "netns", "del", name], capture_output=True)


def _first_child(pid: int) -> int:
    """The `sleep` of a held namespace, once it runs."""
    children, late = Path(f"/proc/{pid}/task/{pid}/children"), time.monotonic() + PATIENCE
    while time.monotonic() < late:
        for child in children.read_text().split():
            if Path(f"/proc/{child}/comm").read_text().strip() == "sleep":
                return int(child)
        time.sleep(0.05)
    raise AssertionError("no namespace of processes")
