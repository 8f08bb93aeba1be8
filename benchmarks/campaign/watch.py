"""Reads cases in processes that may die: what is no LlmcError, a death, a hang and a hunger for memory are findings.

Nothing here starts threads before it forks, so that children are whole processes.
"""

from __future__ import annotations

import json
import mmap
import os
import resource
import signal
import struct
import time
import traceback
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from llmc.runtime.errors import LlmcError

from .targets import Target

SLOW_S = 2.0
"""Processor time of one case."""
HANG_S = 60.0
"""Seconds of one case, on a machine that may be busy, after which its process is killed."""
MEMORY = 1 << 30
"""Bytes of address space that a process may take for cases, beyond what it has when it starts."""
GROWTH = 256 << 20
"""Bytes of memory that one case may take."""
MOST = 40
"""Findings of one target that are kept; a target that has more is wrong everywhere."""
_FIRST = ("cannot ", "expected ")
_SHARED = struct.Struct("<3q")


@dataclass
class Found:
    """What came of a target's cases."""

    cases: int = 0
    accepted: int = 0
    wrong: list[dict[str, Any]] = field(default_factory=list)

    def to_json(self) -> dict[str, Any]:
        return {"cases": self.cases, "accepted": self.accepted, "findings": len(self.wrong)}


class _Worker:
    """A child that reads a range of cases."""

    def __init__(self, target: Target, seed: int, cases: range, notes: Path) -> None:
        self._target, self._seed, self.cases, self._notes = target, seed, cases, notes
        self._shared = mmap.mmap(-1, mmap.PAGESIZE)
        self._seen = (-1, time.monotonic())
        self._pid = os.fork()
        if not self._pid:
            self._child()

    @property
    def state(self) -> tuple[int, int, int]:
        """The case under way, cases that are done, and those of them that were accepted."""
        return _SHARED.unpack_from(self._shared)

    def end(self, stop: bool) -> dict[str, Any] | None:
        """None while it runs, {} if it has done all or is stopped, else how it failed."""
        ended, status = os.waitpid(self._pid, os.WNOHANG)
        if ended:
            code = os.waitstatus_to_exitcode(status)
            return {"death": code} if code else {}
        if stop:
            self._kill()
            return {}
        if self.state[0] != self._seen[0]:
            self._seen = self.state[0], time.monotonic()
        elif time.monotonic() - self._seen[1] > HANG_S:
            self._kill()
            return {"hang": HANG_S}
        return None

    def _kill(self) -> None:
        os.kill(self._pid, signal.SIGKILL)
        os.waitpid(self._pid, 0)

    def _child(self) -> None:
        try:
            _limit()
            nowhere = os.open(os.devnull, os.O_RDWR)
            for stream in (1, 2):  # Rust writes of every panic
                os.dup2(nowhere, stream)
            done = accepted = said = 0
            for case in self.cases:
                _SHARED.pack_into(self._shared, 0, case, done, accepted)
                notes, read = judge(self._target, self._target.case(self._seed, case))
                accepted += read
                done += 1
                for note in notes[: MOST - said]:
                    self._note({"target": self._target.name, "case": case, **note})
                    said += 1
            _SHARED.pack_into(self._shared, 0, -1, done, accepted)
        except BaseException:
            self._note({"target": self._target.name, "case": -1, "broken": traceback.format_exc()[-600:]})
            os._exit(3)
        os._exit(0)

    def _note(self, note: dict[str, Any]) -> None:
        with self._notes.open("a") as file:
            file.write(json.dumps(note) + "\n")


def _limit() -> None:
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    most = pages * mmap.PAGESIZE + MEMORY
    resource.setrlimit(resource.RLIMIT_AS, (most, most))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))


def judge(target: Target, data: bytes) -> tuple[list[dict[str, Any]], bool]:
    """What is wrong with the reading of one case, and whether it was accepted."""
    notes: list[dict[str, Any]] = []
    began, before, accepted = time.process_time(), _peak(), False
    try:
        target.read(data)
        accepted = True
    except LlmcError as error:
        if not error.asked.startswith(_FIRST):
            notes.append({"message": error.asked[:200]})
    except BaseException as error:
        at = traceback.extract_tb(error.__traceback__)[-1]
        where = f"{Path(at.filename).name}:{at.lineno}"
        notes.append({"foreign": type(error).__name__, "said": str(error)[:200], "at": where})
    if (seconds := time.process_time() - began) > SLOW_S:
        notes.append({"slow": round(seconds, 1)})
    if (grown := _peak() - before) > GROWTH:
        notes.append({"memory": grown})
    return notes, accepted


def _peak() -> int:
    return 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def hunt(target: Target, seed: int, cases: Iterable[range], notes: Path, until: float) -> Found:
    """Read ranges of cases, each in a process of its own; one that dies or hangs is followed by one for what is left.

    `until` is the time of the monotonic clock at which all stop.
    """
    found = Found()
    notes.unlink(missing_ok=True)
    running = [_Worker(target, seed, one, notes) for one in cases]
    while running:
        time.sleep(0.02)
        for worker in [*running]:
            end = worker.end(time.monotonic() > until)
            if end is None:
                continue
            running.remove(worker)
            case, done, accepted = worker.state
            found.cases, found.accepted = found.cases + done, found.accepted + accepted
            if end:
                found.cases += 1
                found.wrong.append({"target": target.name, "case": case, **end})
                rest = range(case + worker.cases.step, worker.cases.stop, worker.cases.step)
                if len(found.wrong) < MOST:
                    running.append(_Worker(target, seed, rest, notes))
    if notes.exists():
        found.wrong += [json.loads(line) for line in notes.read_text().splitlines()]
    return found
