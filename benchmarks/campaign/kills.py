"""Kills builds at moments of every stage: the path holds the old engine or a new one, and the next build cleans up."""

from __future__ import annotations

import hashlib
import os
import random
import select
import shutil
import signal
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

from llmc.compiler.build import build
from llmc.compiler.checkpoint.account import open_source
from llmc.recipes.recipe import with_flags

from .seeds import CHECKPOINTS

KILLS = 200
LIMIT_S = 420.0
STAGES = (
    "start",
    "read headers",
    "graph and passes",
    "compile profiles",
    "weights",
    "golden probe",
    "digest checkpoint",
    "finish file",
)
"""What a build reports, after the opening of the checkpoint."""
_OFTEN = (*STAGES, "weights", "golden probe", "finish file", "finish file")
"""The stages that write get more kills."""


@dataclass(frozen=True)
class _Told:
    """Writes the name of each stage to a pipe when it begins."""

    fd: int

    @contextmanager
    def stage(self, name: str, total: int | None = None, unit: str = "") -> Iterator[Callable[[int], None]]:
        os.write(self.fd, f"{name}\n".encode())
        yield lambda done: None


class _Build:
    """A build in a child of this process, which has imported everything and computed nothing."""

    def __init__(self, output: Path) -> None:
        self._read, write = os.pipe()
        self._text = b"start\n"
        self.pid = os.fork()
        if not self.pid:
            code = 1
            try:
                nowhere = os.open(os.devnull, os.O_RDWR)
                for stream in (0, 1, 2):
                    os.dup2(nowhere, stream)
                recipe = with_flags(None, quantize="int8")
                build(open_source(CHECKPOINTS / "pico-python"), output, recipe, progress=_Told(write))
                code = 0
            finally:
                os._exit(code)
        os.close(write)

    def reaches(self, stage: str) -> bool:
        """Wait until a stage begins; False if the build ends before."""
        while stage not in self._text.decode().split("\n"):
            part = os.read(self._read, 4096)
            if not part:
                return False
            self._text += part
        return True

    def ends_in(self, seconds: float) -> bool:
        """Whether the build ends within a time."""
        until = time.monotonic() + seconds
        while (left := until - time.monotonic()) > 0:
            if select.select([self._read], [], [], left)[0] and not os.read(self._read, 4096):
                return True
        return False

    def end(self, kill: bool) -> int:
        """The exit code, after a SIGKILL if asked for."""
        if kill:
            os.kill(self.pid, signal.SIGKILL)
        _, status = os.waitpid(self.pid, 0)
        os.close(self._read)
        return os.waitstatus_to_exitcode(status)


def _spans(output: Path) -> dict[str, float]:
    """Seconds of each stage in a build that is left alone."""
    started, times = _Build(output), []
    for stage in STAGES:
        started.reaches(stage)
        times.append(time.monotonic())
    while not started.ends_in(60):
        pass
    times.append(time.monotonic())
    if code := started.end(kill=False):
        raise SystemExit(f"cannot build the checkpoint: exit code {code}")
    return {stage: after - at for stage, (at, after) in zip(STAGES, pairwise(times), strict=True)}


def run(share: float, seed: int, folder: Path) -> dict[str, Any]:
    """Kill, look at what is there, build once more, look again."""
    chosen, until = random.Random(seed), time.monotonic() + LIMIT_S
    place = folder / "kills"
    place.mkdir()
    output, temporary = place / "e.llmc", Path(os.environ["TMPDIR"])
    _Build(output).end(kill=False)
    new = _digest(output)
    old_file = folder / "small.llmc"
    old = _digest(old_file)
    output.unlink()
    spans = _spans(output)
    wrong: list[dict[str, Any]] = []
    outcomes: Counter[str] = Counter()
    stages: Counter[str] = Counter()
    kills = 0
    while kills < max(1, round(KILLS * share)) and time.monotonic() < until:
        had_old, stage = chosen.random() < 0.5, _OFTEN[kills % len(_OFTEN)]
        output.unlink(missing_ok=True)
        if had_old:
            shutil.copy(old_file, output)
        one = _Build(output)
        late = not one.reaches(stage)
        code = one.end(kill=late or not one.ends_in(chosen.uniform(0, 1.1 * spans[stage])))
        kills += 1
        stages[stage] += 1
        left = _digest(output) if output.exists() else "nothing"
        others = [name for name in os.listdir(place) if name != output.name]
        outcome = {new: "new", old: "old", "nothing": "nothing"}.get(left, "damaged")
        outcomes[f"{outcome}{', rest' if others else ''}"] += 1
        allowed = {"new", "old" if had_old else "nothing"} if code else {"new"}
        if code not in (0, -signal.SIGKILL) or outcome not in allowed:
            wrong.append({"kill": kills, "stage": stage, "code": code, "left": outcome})
        if any(not name.startswith(".") for name in others):
            wrong.append({"kill": kills, "stage": stage, "files": others})
        again = _Build(output).end(kill=False)
        files, rest = os.listdir(place), os.listdir(temporary)
        if again or files != [output.name] or rest or _digest(output) != new:
            wrong.append({"kill": kills, "stage": stage, "rebuilt": again, "files": files, "temporary": rest})
    return {"kills": kills, "outcomes": dict(outcomes), "stages": dict(stages), "wrong": wrong}


def _digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()
