"""A folder of what passes did: the graph after each that changed it, and the one that a pass crashed over."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ...runtime.errors import RecipeError
from ..graph.graph import Graph
from ..graph.saved import saved_text, unsaid


@dataclass(frozen=True)
class PassReport:
    """What one pass did to a graph."""

    profile: str
    """Whose graph it is; "" before profiles part."""
    phase: str
    name: str
    reason: str
    """The first line of the pass's docstring."""
    fired: int
    """The number of rewrites."""
    seconds: float
    nearest_miss: str
    """Why the place that came nearest to a rewrite was left alone, or ""."""


@dataclass(frozen=True)
class Step:
    """A pass, and the graph's text after it where it fired; `file` holds it. report None: the graph at the start."""

    report: PassReport | None
    text: str = ""
    file: str = ""


@dataclass
class Dump:
    """What is written into a folder, and remembered for its page. recipe: what a replay needs to make the passes."""

    folder: Path
    recipe: Mapping[str, Any]
    version: str
    steps: list[Step] = field(default_factory=list)
    files: list[str] = field(default_factory=list)
    _now: tuple[str, str] = ("", "")
    """The graph as it is: ONNX text, and what that leaves out."""

    def __post_init__(self) -> None:
        """Raises RecipeError for a folder with files in it: an older dump's would be taken for this one's."""
        if self.folder.exists() and (not self.folder.is_dir() or any(self.folder.iterdir())):
            found = f"{self.folder} has files in it" if self.folder.is_dir() else f"{self.folder} is a file"
            raise RecipeError("expected --dump DIR to be a new or empty folder", found=found, fix="another folder")
        self.folder.mkdir(parents=True, exist_ok=True)

    def begin(self, graph: Graph) -> None:
        """The passes of all profiles, or of one, start here."""
        self._now = graph.text(), unsaid(graph)
        self.steps.append(Step(None, self._now[0]))

    def keep(self, report: PassReport, graph: Graph, following: str) -> None:
        """A pass has run; `following` is the next of its phase."""
        if not report.fired:
            return self.steps.append(Step(report))
        number = sum(step.report is not None for step in self.steps)
        name = file_name(f"{number:02d}", report.profile, report.phase, report.name)
        self._now = graph.text(), unsaid(graph)
        self._save(name, report.profile, report.phase, following)
        self.steps.append(Step(report, self._now[0], name))

    def crash(self, profile: str, phase: str, name: str) -> Path:
        """A pass has crashed: the graph before it."""
        return self._save(file_name("crash", profile, phase, name), profile, phase, name)

    def _save(self, name: str, profile: str, phase: str, following: str) -> Path:
        """The graph as it is, before the pass `following` of a phase, "" at its end."""
        at = {"llmc": self.version, "recipe": self.recipe, "profile": profile, "phase": phase, "next": following}
        return self.write(name, saved_text(self._now[0], at, self._now[1]))

    def write(self, name: str, content: str | bytes) -> Path:
        """A file of the folder."""
        path = self.folder / name
        path.parent.mkdir(exist_ok=True)
        self.files.append(name)
        path.write_bytes(content.encode() if isinstance(content, str) else content)
        return path


def file_name(*parts: str) -> str:
    """A file of these parts, those that are there, equal ones once."""
    return "-".join(dict.fromkeys(filter(None, parts))) + ".txt"
