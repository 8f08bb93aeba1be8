"""Runs programs beside the bench to their end or time limit, with their children, and keeps the end of their output."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

BENCHMARKS = Path(__file__).resolve().parent.parent
_TAIL = 1500


def ran(command: Sequence[str], limit: float, environment: Mapping[str, str] | None = None) -> dict[str, Any]:
    """Seconds, exit code and last output of a program, and its last line if that is a JSON object.

    RuntimeError: it did not end in time, or ended with another code than 0.
    """
    began = time.perf_counter()
    environment = {**os.environ, **(environment or {})}
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, errors="replace", env=environment,
        start_new_session=True,
    )  # fmt: skip
    try:
        said, _ = process.communicate(timeout=limit)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        said, _ = process.communicate()
        raise RuntimeError(f"{_shown(command)} was killed after {limit:g} s: {said[-_TAIL:]}") from None
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
    if process.returncode:
        raise RuntimeError(f"{_shown(command)}: exit {process.returncode}: {said[-_TAIL:]}")
    seconds = time.perf_counter() - began
    lines = said.strip().splitlines()
    try:
        told = json.loads(lines[-1]) if lines else {}
    except ValueError:
        told = {}
    return {"program_s": seconds, "said": said, "told": told if isinstance(told, dict) else {}}


def script(name: str, *arguments: object) -> list[str]:
    """The command of a benchmark of this folder."""
    return [sys.executable, str(BENCHMARKS / name), *map(str, arguments)]


def _shown(command: Sequence[str]) -> str:
    return " ".join(Path(part).name if part.startswith("/") else part for part in command)[:200]
