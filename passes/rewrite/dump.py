"""Writes a folder with the graph after each pass that changed it, and before a pass that crashed."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ...runtime.errors import RecipeError
from ..graph.graph import Graph
from ..graph.saved import metadata_comments, saved_text


@dataclass(frozen=True)
class PassReport:
    """What one pass did to a graph."""

    profile: str
    """The profile of the graph; "" for model passes."""
    phase: str
    name: str
    reason: str
    """First line of the docstring of the pass."""
    fired: int
    """The number of rewrites."""
    seconds: float
    nearest_miss: str
    """Why the nearest candidate was not rewritten, or ""."""


@dataclass(frozen=True)
class Step:
    """A pass and, if it fired, the text of the graph after it and its file. At the start `report` is None."""

    report: PassReport | None
    text: str = ""
    file: str = ""


@dataclass
class Dump:
    """Writes the files of a folder, and keeps what its page shows. A replay makes the passes from `recipe`."""

    folder: Path
    recipe: Mapping[str, Any]
    version: str
    placements: list[Any] = field(default_factory=list)
    """What the ranks of each split have (`passes/partition.py`, Placement), as JSON."""
    steps: list[Step] = field(default_factory=list)
    files: list[str] = field(default_factory=list)
    _now: tuple[str, str] = ("", "")
    """The current graph: ONNX text, and what that text leaves out."""

    def __post_init__(self) -> None:
        """Make the folder. Files of an older dump would mislead, so it must be empty.

        Raises:
            RecipeError: the folder has files, is a file, or cannot be made.
        """
        if self.folder.exists() and (not self.folder.is_dir() or any(self.folder.iterdir())):
            found = f"{self.folder} has files in it" if self.folder.is_dir() else f"{self.folder} is a file"
            raise RecipeError("expected --dump DIR to be a new or empty folder", found=found, fix="another folder")
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise RecipeError(f"cannot make the folder {self.folder} of --dump", found=str(error.strerror)) from error

    def begin(self, graph: Graph) -> None:
        """Keep the graph before the first model pass, or before the first pass of a profile."""
        self._now = graph.text(), metadata_comments(graph)
        self.steps.append(Step(None, self._now[0]))

    def keep(self, report: PassReport, graph: Graph, following: str) -> None:
        """Keep the report of a pass, and the graph if it fired. `following` is the next pass of the phase, or ""."""
        if not report.fired:
            return self.steps.append(Step(report))
        number = sum(step.report is not None for step in self.steps)
        name = file_name(f"{number:02d}", report.profile, report.phase, report.name)
        self._now = graph.text(), metadata_comments(graph)
        self._save(name, report.profile, report.phase, following)
        self.steps.append(Step(report, self._now[0], name))

    def crash(self, profile: str, phase: str, name: str) -> Path:
        """Write the graph before a pass that crashed; returns its file."""
        return self._save(file_name("crash", profile, phase, name), profile, phase, name)

    def _save(self, name: str, profile: str, phase: str, following: str) -> Path:
        """Write the current graph and where it stands: before the pass `following` of a phase, "" at its end."""
        at: dict[str, Any] = {
            "llmc": self.version,
            "recipe": self.recipe,
            "profile": profile,
            "phase": phase,
            "next": following,
        }
        if self.placements:
            at["placements"] = self.placements
        return self.write(name, saved_text(self._now[0], at, self._now[1]))

    def write(self, name: str, content: str | bytes) -> Path:
        """Write a file of the folder; returns its path."""
        path = self.folder / name
        path.parent.mkdir(exist_ok=True)
        self.files.append(name)
        path.write_bytes(content.encode() if isinstance(content, str) else content)
        return path


def file_name(*parts: str) -> str:
    """The name of a file: its parts without empty ones and repeats."""
    return "-".join(dict.fromkeys(filter(None, parts))) + ".txt"
