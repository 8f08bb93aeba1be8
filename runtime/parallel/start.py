"""Starts the other ranks of a job as processes of this machine, and ends them."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from ..machine import cpu_count
from .control import Control
from .data import memory
from .data.mesh import Mesh
from .frames import Connection
from .job import START, Job, identity

Serve = Callable[[Job, Mapping[str, Any]], None]
"""What a rank above 0 does until `job.receive()` gives None; a function of a module."""
_REAPED = 2.0
"""Seconds that a process has to be gone after its connection has ended."""


class _Children:
    """The processes of ranks 1, 2, ..."""

    def __init__(self) -> None:
        self._children = dict[int, subprocess.Popen[bytes]]()

    def start(self, rank: int, file: int, memory: int) -> int:
        """The process's number; it has the socket and the memory of these descriptors."""
        command = [sys.executable, "-P", "-m", f"{__package__}.worker", str(rank), str(file)]
        # Ctrl-C reaches all processes of a terminal: a rank ignores it, once it has begun
        before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
        try:
            child = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=2, pass_fds=(file, memory))
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)
        self._children[rank] = child
        return child.pid

    def died(self, rank: int) -> int | None:
        with contextlib.suppress(subprocess.TimeoutExpired):
            return self._children[rank].wait(_REAPED)
        return None

    def stopped(self, rank: int) -> bool:
        with contextlib.suppress(OSError):
            state = Path(f"/proc/{self._children[rank].pid}/stat").read_text(encoding="utf-8").rpartition(") ")[2]
            return state.startswith("T")
        return False

    def end(self) -> None:
        for child in self._children.values():
            child.kill()
            child.wait()


def spawn(serve: Serve, arguments: Mapping[str, Any], *, ranks: int, tp: int, start: float = START) -> Job:
    """Start ranks 1, 2, ... on this machine, each of which calls `serve(job, arguments)`; returns rank 0's job.

    `arguments` are JSON. `start` is how many seconds a rank has to come.

    Raises:
        ResourceError: a rank does not come, or the system refuses it.
    """
    children, connections = _Children(), []
    shared = memory.create(ranks)
    try:
        for rank in range(1, ranks):
            own, other = socket.socketpair()
            connections.append(Connection(own, rank))
            with other:
                pid = children.start(rank, other.fileno(), shared)
                connections[-1].name = identity(rank, pid)
    except BaseException:
        for one in connections:
            one.close()
        children.end()
        os.close(shared)
        raise
    control = Control(0, connections, children)
    job = local_job(control, ranks, tp, shared, start)
    try:
        told = {
            "arguments": arguments,
            "function": serve.__qualname__,
            "memory": shared,
            "module": serve.__module__,
            "name": identity(0, os.getpid()),
            # the kernel's signal comes when the thread ends that has started the child
            "parent": os.getpid() if threading.current_thread() is threading.main_thread() else 0,
            "ranks": ranks,
            "tp": tp,
        }
        for rank in range(1, ranks):
            control.tell(rank, "start", told)
        absent = set(range(1, ranks))
        while absent:
            frame = control.hear("ready", start, lambda: f"none of rank {', '.join(map(str, sorted(absent)))}")
            absent.discard(frame.rank)
    except BaseException as problem:
        job.fail(problem)
        job.close()
        raise
    return job


def local_job(control: Control, ranks: int, tp: int, file: int, start: float = START) -> Job:
    """The job of ranks that all share the memory of this descriptor, which is the job's from now on."""
    rank = control.rank
    shared = memory.SharedMemory(file, ranks, control.check, spin=cpu_count() >= ranks)
    mesh = Mesh(rank, tp, [0] * ranks, shared)
    return Job(mesh, control, start=start, release=mesh.close)
