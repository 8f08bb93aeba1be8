"""Children that a prepared process forks: to kill forty of them costs the start of one interpreter, and its imports."""

from __future__ import annotations

import contextlib
import os
import select
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from textwrap import indent

_SERVER = """
import os, sys
{prelude}
def body():
{body}
for _ in sys.stdin:
    pid = os.fork()
    if not pid:
        nowhere = os.open(os.devnull, os.O_RDWR)
        for stream in (0, 1, 2):
            os.dup2(nowhere, stream)
        os._exit(body() or 0)
    print(pid, flush=True)
    print(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), flush=True)
"""


class Warm:
    """A process that has run its prelude, and forks one child at a time."""

    def __init__(self, process: subprocess.Popen[bytes]) -> None:
        self._process = process
        self._pid = 0

    def start(self) -> None:
        """Fork a child that runs the body."""
        assert self._process.stdin is not None
        self._process.stdin.write(b"\n")
        self._pid = self._number()

    def ended(self) -> bool:
        assert self._process.stdout is not None
        return bool(select.select([self._process.stdout], [], [], 0)[0])

    def kill(self) -> int:
        """End the child with SIGKILL, unless it has ended; its exit code, as that of `subprocess`."""
        with contextlib.suppress(ProcessLookupError):
            os.kill(self._pid, signal.SIGKILL)
        self._pid, code = 0, self._number()
        return code

    def abandon(self) -> None:
        """End a child that still runs because its test has failed."""
        if self._pid and not self.ended():
            with contextlib.suppress(ProcessLookupError):
                os.kill(self._pid, signal.SIGKILL)

    def _number(self) -> int:
        assert self._process.stdout is not None
        return int(self._process.stdout.readline())


@contextmanager
def warm(prelude: str, body: str, *arguments: str | Path) -> Iterator[Warm]:
    """The process; body: of a function, which gives the child's exit code. Both see the arguments in `sys.argv[1:]`."""
    code = _SERVER.format(prelude=prelude, body=indent(body, "    "))
    command = [sys.executable, "-c", code, *map(str, arguments)]
    # without buffers, as `select` does not see what lies in one
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, bufsize=0) as process:
        one = Warm(process)
        try:
            yield one
        finally:
            one.abandon()
            process.kill()
