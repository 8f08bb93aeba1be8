"""What a build made, and how long each stage of it took."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from ...passes import PassReport
from ...runtime.progress import Progress


@dataclass(frozen=True)
class BuildReport:
    """What a build made, and what it took. Stages are (name, seconds)."""

    path: Path
    bytes: int
    seconds: float
    peak_rss_bytes: int
    stages: tuple[tuple[str, float], ...]
    passes: tuple[PassReport, ...]
    unused: Mapping[str, str]
    warnings: tuple[str, ...]
    content_digest: str


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
    def stage(self, name: str, total: int | None = None) -> Iterator[Callable[[int], None]]:
        """A stage of `total` bytes, if that is known; inside it, tell the given function the bytes just done."""
        start = self.seconds
        with self.progress.stage(name, total) as advance:
            yield advance
        self.stages.append((name, self.seconds - start))
