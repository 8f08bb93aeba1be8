"""The process of a rank that rank 0 starts on its machine: `python -m llmc.runtime.parallel.worker RANK SOCKET`."""

from __future__ import annotations

import ctypes
import os
import signal
import socket
import sys
from importlib import import_module

from ..errors import LlmcError
from .control import Control
from .frames import Connection
from .start import local_job

_PR_SET_PDEATHSIG = 1


def main(rank: int, file: int) -> int:
    """Serve until rank 0 ends the job or is gone; rank 0 says what went wrong."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches all processes of a terminal: it is rank 0's
    control = Control(rank, [Connection(socket.socket(fileno=file), 0)])
    try:
        told = control.hear("start").header
    except LlmcError as error:
        return error.exit_code
    if told["parent"]:
        _end_with(told["parent"])
    control.name(0, told["name"])
    with local_job(control, told["ranks"], told["tp"], told["memory"]) as job:
        control.tell(0, "ready", {})
        try:
            getattr(import_module(told["module"]), told["function"])(job, told["arguments"])
        except BaseException as problem:
            return job.fail(problem).exit_code
    return 0


def _end_with(parent: int) -> None:
    """Have the kernel end this process with its parent: a belt, as the end of the connection ends it too."""
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        os._exit(0)


if __name__ == "__main__":
    sys.exit(main(*map(int, sys.argv[1:])))
