"""The key of an engine in the cache: a digest of everything that decides what it computes."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from functools import cache
from importlib.metadata import version
from pathlib import Path

from ...recipes.recipe import Recipe
from ...runtime.engine_file.manifest import FORMAT
from ...runtime.errors import DISTRIBUTION
from ...runtime.files.strict_json import canonical
from ..checkpoint.checkpoint import Checkpoint

DIGITS = 32
_PACKAGE = Path(__file__).resolve().parents[2]
_ROOMS = ("runtime", "recipes", "quantize", "passes", "compiler")


def key_of(checkpoint: Checkpoint, digests: Mapping[str, str], recipe: Recipe) -> str:
    """The key of the engine that this llmc builds from a checkpoint, whose files have these digests, and a recipe.

    Versions of torch, numpy, onnx and Triton are not part of it: an engine that an older one of them helped to build is
    as good, and building gigabytes again after each update would help nobody.
    """
    said = (checkpoint.name, checkpoint.hub_id, checkpoint.revision, checkpoint.licence)
    parts = {
        "files": dict(digests),
        "said": list(said),
        "accepted": list(checkpoint.config.accepted),
        "recipe": recipe.to_json(),
        "format": list(FORMAT),
        "llmc": [version(DISTRIBUTION), sources_digest()],
    }
    return hashlib.sha256(canonical(parts)).hexdigest()[:DIGITS]


@cache
def sources_digest() -> str:
    """A digest of llmc's own sources below the command line: an installation from git keeps its version for long."""
    digest = hashlib.sha256()
    for room in _ROOMS:
        for path in sorted((_PACKAGE / room).rglob("*")):
            if path.suffix in (".py", ".yaml"):
                name = path.relative_to(_PACKAGE).as_posix()
                digest.update(f"{name} {hashlib.sha256(path.read_bytes()).hexdigest()}\n".encode())
    return digest.hexdigest()
