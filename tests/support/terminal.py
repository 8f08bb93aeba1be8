"""A command at a terminal of its own: what is typed, and what it shows."""

from __future__ import annotations

import os
import pty
import select
import signal
import sys


class Terminal:
    """`llmc run --chat` at a terminal of its own."""

    def __init__(self, *arguments: object) -> None:
        self.shown, self._seen = b"", 0
        command = [sys.executable, "-m", "llmc", "run", *map(str, arguments), "--chat"]
        self._child, self._terminal = pty.fork()
        if self._child == 0:
            signal.signal(signal.SIGINT, signal.SIG_DFL)  # jobs in the background ignore it, and this may be one
            os.execv(sys.executable, command)

    def until(self, text: bytes) -> bytes:
        """What is shown from the last such place up to `text`."""
        start = self._seen
        while text not in self.shown[start:]:
            assert self.read(), self.shown.decode(errors="replace")
        self._seen = self.shown.index(text, start) + len(text)
        return self.shown[start : self._seen]

    def type(self, text: bytes) -> None:
        os.write(self._terminal, text)

    def press_ctrl_c(self) -> None:
        """Again if nothing happens: Python overlooks one that comes just before readline waits for a key."""
        self.type(b"\x03")
        for _ in range(10):
            if select.select([self._terminal], [], [], 2)[0]:
                return
            self.type(b"\x03")

    def read(self) -> bool:
        """Wait for more; False if no more will come."""
        if not select.select([self._terminal], [], [], 120)[0]:
            os.kill(self._child, signal.SIGKILL)  # instead of waiting for ever
        try:
            piece = os.read(self._terminal, 4096)
        except OSError:  # how Linux says that the other end is closed
            return False
        self.shown += piece
        return bool(piece)

    def end(self) -> int:
        """The exit code, when all has been read."""
        while self.read():
            pass
        os.close(self._terminal)
        return os.waitstatus_to_exitcode(os.waitpid(self._child, 0)[1])
