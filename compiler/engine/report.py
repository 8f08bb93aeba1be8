"""The report of a build: its result, and the time of each stage."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from ...passes import PassReport
from ...runtime.progress import BYTES, Progress


@dataclass(frozen=True)
class BuildReport:
    """The result of a build, and the time and memory it took."""

    files: tuple[Path, ...]
    """The engine's path, then those of its further files."""
    bytes: int
    """Of all files."""
    seconds: float
    peak_rss_bytes: int
    stages: tuple[tuple[str, float], ...]
    """(name, seconds), in order."""
    passes: tuple[PassReport, ...]
    unused: Mapping[str, str]
    """Unused tensor of the checkpoint, to the reason."""
    warnings: tuple[str, ...]
    content_digest: str

    @property
    def path(self) -> Path:
        return self.files[0]


@dataclass
class Clock:
    """Names and times the stages of a build."""

    progress: Progress
    stages: list[tuple[str, float]] = field(default_factory=list)
    began: float = field(default_factory=time.perf_counter)

    @property
    def seconds(self) -> float:
        return time.perf_counter() - self.began

    @contextmanager
    def stage(self, name: str, total: int | None = None, unit: str = BYTES) -> Iterator[Callable[[int], None]]:
        """Time a stage of `total` units (None: unknown); its body passes the units just done to what it yields."""
        start = self.seconds
        with self.progress.stage(name, total, unit) as advance:
            yield advance
        self.stages.append((name, self.seconds - start))
