"""Builds under many environments: the bytes of an engine depend on its checkpoint and its recipe alone."""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from .seeds import CHECKPOINTS

FORMATS = ("int8", "nvfp4")
LIMIT_S = 240.0
_CHECKPOINT = CHECKPOINTS / "pico-python"


@dataclass(frozen=True)
class Surroundings:
    """How a build is started. Words {checkpoint}, {folder} and {format} are filled in; a variable of None is unset."""

    name: str
    variables: Mapping[str, str | None] = field(default_factory=dict)
    before: str = ""
    """Shell commands before it."""
    python: str = ""
    """Flags of Python."""
    checkpoint: str = "{checkpoint}"
    output: str = "{folder}/e.llmc"
    folder: str = "{folder}"
    """Where it is started."""


ALL = (
    Surroundings("plain"),
    Surroundings("C locale", {"LC_ALL": "C", "LANG": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}),
    Surroundings("Turkish locale, Kathmandu", {"LC_ALL": "tr_TR.UTF-8", "LANG": "tr_TR.UTF-8", "TZ": "Asia/Kathmandu"}),
    Surroundings("hash seed 0, far in the past", {"PYTHONHASHSEED": "0", "SOURCE_DATE_EPOCH": "1"}),
    Surroundings("hash seed 4242, no home", {"PYTHONHASHSEED": "4242", "HOME": None, "USER": None, "LOGNAME": None}),
    Surroundings("relative paths", checkpoint="../here/checkpoint", output="e.llmc", folder="{folder}/there"),
    Surroundings("links", checkpoint="{folder}/link", output="{folder}/linked/e.llmc", folder="/"),
    Surroundings("umask 077", before="umask 077;"),
    Surroundings("one thread", {"LLMC_THREADS": "1", "OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}),
    Surroundings(
        "seven threads on one CPU", {"LLMC_THREADS": "7", "OMP_NUM_THREADS": "7"}, before="taskset -p -c 0 $$ >&2;"
    ),
    Surroundings("another TMPDIR, cache off", {"TMPDIR": "{folder}/there", "LLMC_CACHE": ""}),
    Surroundings("python -O -B, nice 10", {"PYTHONOPTIMIZE": "2"}, before="renice -n 10 $$ >&2;", python="-O -B"),
    Surroundings("low limits", before="ulimit -n 96; ulimit -s 2048; ulimit -c 0;"),
    Surroundings(
        "dirty memory, no terminal",
        {"MALLOC_PERTURB_": "165", "PYTHONMALLOC": "malloc", "TERM": "dumb", "COLUMNS": "3"},
    ),
)


def run(share: float, seed: int, folder: Path) -> dict[str, Any]:
    """Build each format in each of the first surroundings; `seed` changes nothing."""
    until = time.monotonic() + LIMIT_S
    chosen = ALL[: max(2, round(len(ALL) * share))]
    jobs = [(one, form) for one in chosen for form in FORMATS[: 1 if share < 0.5 else None]]
    with ThreadPoolExecutor(len(os.sched_getaffinity(0))) as pool:
        found = list(pool.map(lambda job: _build(folder / "surroundings", job[0], job[1], until), jobs))
    wrong: list[dict[str, Any]] = []
    first: dict[str, str] = {}
    for (one, form), (digest, said) in zip(jobs, found, strict=True):
        if not digest:
            wrong.append({"surroundings": one.name, "format": form, "said": said})
        elif first.setdefault(form, digest) != digest:
            wrong.append({"surroundings": one.name, "format": form, "bytes": "others than those of the first"})
    return {"surroundings": len(chosen), "builds": len(jobs), "wrong": wrong}


def _build(place: Path, one: Surroundings, form: str, until: float) -> tuple[str, str]:
    """The digest of an engine's bytes; "" and what was said if there is none."""
    folder = place / f"{one.name} {form}"
    for made in ("there", "here", "really"):
        (folder / made).mkdir(parents=True)
    (folder / "here" / "checkpoint").symlink_to(_CHECKPOINT)
    (folder / "link").symlink_to(_CHECKPOINT)
    (folder / "linked").symlink_to(folder / "really")
    words = {"folder": str(folder), "checkpoint": str(_CHECKPOINT)}
    changes = {name: None if text is None else text.format(**words) for name, text in one.variables.items()}
    variables = {name: text for name, text in {**os.environ, **changes}.items() if text is not None}
    shell = f'{one.before} exec "$0" {one.python} -P -m llmc build "$1" -o "$2" --quantize {form}'
    checkpoint, output = one.checkpoint.format(**words), one.output.format(**words)
    start = Path(one.folder.format(**words))
    command = ["/bin/sh", "-c", shell, sys.executable, checkpoint, output]
    left = max(1.0, until - time.monotonic())
    try:
        done = subprocess.run(
            command, cwd=start, env=variables, capture_output=True, timeout=left, stdin=subprocess.DEVNULL
        )
    except subprocess.TimeoutExpired:
        return "", "not done in time"
    path = start / output
    digest = hashlib.sha256(path.read_bytes()).hexdigest() if done.returncode == 0 else ""
    shutil.rmtree(folder)
    return digest, done.stderr.decode(errors="replace")[-400:]
