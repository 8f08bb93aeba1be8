"""The report of a build as a file for a CI job: JSON for programs, Markdown for the summary of a job."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from ...runtime.engine_file.file import EngineFile
from ...runtime.errors import RecipeError, printable
from ...runtime.files.outputs import FileKind, check_output, write_whole
from ..common import console

VERSION = 1
_TITLE = "# llmc build: "
_FIRST = '{\n "llmc_report": '
KINDS: Mapping[str, FileKind] = {
    ".json": FileKind("a build report", "", _FIRST.encode()),
    ".md": FileKind("a build report", "", _TITLE.encode()),
}
"""By the ending of the file's name."""
_OF_MANIFEST = ("model", "recipe", "formats", "checkpoint", "profiles", "tools")


def check(path: Path, inputs: Iterable[str | Path], *, force: bool) -> None:
    """Check, before a build, that its report may be written.

    Raises:
        RecipeError: the name has another ending, or is an input or a file of another kind.
        ResourceError: its folder cannot be written.
    """
    if path.suffix not in KINDS:
        raise RecipeError(f"expected --report as a file that ends in {' or '.join(KINDS)}", found=str(path))
    check_output(path, KINDS[path.suffix], inputs, force=force)


def write(path: Path, checkpoint: str, built: Mapping[str, Any], *, force: bool) -> None:
    """Write the report of a build that has succeeded; `built` is what `llmc build --json` prints.

    Raises:
        ResourceError: the file cannot be written.
    """
    with EngineFile.open(built["path"]) as engine:
        facts = _facts(engine, checkpoint, built)
    kind = KINDS[path.suffix]
    text = json.dumps(facts, indent=1) + "\n" if kind is KINDS[".json"] else printable(as_markdown(facts))
    check_output(path, kind, force=force)  # again: a build takes minutes
    write_whole(path, text.encode())


def _facts(engine: EngineFile, checkpoint: str, built: Mapping[str, Any]) -> dict[str, Any]:
    manifest = json.loads(engine.manifest.to_json())
    for profile in manifest["profiles"].values():
        profile["weights"] = len(profile["weights"])
    return {
        "llmc_report": VERSION,
        "source": checkpoint,
        **built,
        **{key: manifest[key] for key in _OF_MANIFEST},
        "weights": _weights(engine),
        "sections": {name: len(engine.section(name)) for name in engine.sections},
    }


def _weights(engine: EngineFile) -> list[dict[str, Any]]:
    """Tensors by name and format, the layers of one name together; the scales of a weight count with it."""
    formats = engine.manifest.formats
    found: dict[tuple[str, str], dict[str, Any]] = {}
    for name, info in engine.tensors.items():
        weight = next((one for one in formats if name == one or name.startswith(f"{one}_")), name)
        key = re.sub(r"\.\d+\.", ".*.", weight), formats.get(weight, info.dtype)
        row = found.setdefault(key, {"name": key[0], "format": key[1], "weights": 0, "bytes": 0})
        row["weights"] += name == weight
        row["bytes"] += info.nbytes
    return sorted(found.values(), key=lambda row: -row["bytes"])


_SUMMARY = """\
{title}{path}

| | |
|---|---|
| checkpoint | {source}: {model[architecture]}, {model[parameters]:,} parameters |
| engine | {bytes!b}{of}, built in {seconds:.1f} s with a peak memory of {peak_rss_bytes!b} |
| profiles | {profiles_text} |
| content digest | `{content_digest}` |
| made by | {made_by} |
"""


def as_markdown(facts: Mapping[str, Any]) -> str:
    """The report for people: what was built, its weights by format, stages and warnings."""
    profiles = "; ".join(
        console.fill("{name}: context {max_context}, batch {max_batch}", profile, name=name)
        for name, profile in facts["profiles"].items()
    )
    made_by = ", ".join(f"{name} {version}" for name, version in facts["tools"].items())
    of = f" in {len(facts['files'])} files" if len(facts["files"]) > 1 else ""
    text = console.fill(_SUMMARY, facts, title=_TITLE, profiles_text=profiles, made_by=made_by, of=of)
    if facts["warnings"]:
        text += "\n## Warnings\n\n" + "".join(f"- {one}\n" for one in facts["warnings"])
    rows = [
        (f"`{row['name']}`", row["format"], str(row["weights"]), console.size(row["bytes"])) for row in facts["weights"]
    ]
    text += "\n## Weights\n\n" + _table(("name", "format", "weights", "size"), rows)
    stages = [(name, f"{seconds:.2f}") for name, seconds in facts["stages"].items()]
    text += "\n## Stages\n\n" + _table(("stage", "seconds"), stages)
    return text + f"\n## Recipe\n\n```json\n{json.dumps(facts['recipe'])}\n```\n"


def _table(head: tuple[str, ...], rows: Iterable[tuple[str, ...]]) -> str:
    return "".join("| " + " | ".join(row) + " |\n" for row in (head, ("---",) * len(head), *rows))
