"""What an engine says about itself: read strictly, written in one spelling, so that equal builds give equal bytes."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from ..errors import EngineError
from ..files.records import plain, read
from ..files.strict_json import canonical, loads

FORMAT = (2, 0)
"""Major: readers of another major refuse. Minor: readers of an older minor ignore keys they do not know."""
FEATURES: frozenset[str] = frozenset()
"""What `required_features` may name so far."""
MEASURED = "measured.json"
"""The one section that may differ between machines; the content digest leaves it out."""
TOKENIZER_SECTIONS = "tokenizer/"
"""Sections of this prefix hold a checkpoint's tokenizer files under their own names."""
_VERSION = re.compile(r"(0|[1-9][0-9]{0,3})\.(0|[1-9][0-9]{0,3})")
_DIGEST = re.compile(r"[0-9a-f]{64}")
_SECTION = re.compile(r"[A-Za-z0-9_.-]{1,64}(/[A-Za-z0-9_.-]{1,64}){0,3}")


@dataclass(frozen=True)
class LayerCache:
    """What a layer keeps of each position: keys and values of `kv_heads` heads of `head_dim` numbers.

    window: a token sees that many positions, itself included, so older ones need not be kept; None: all.
    """

    kv_heads: int
    head_dim: int
    window: int | None = None


@dataclass(frozen=True)
class ModelFacts:
    """What a runtime must know of the model. caches: what a sequence keeps, layer by layer; `generation` holds the
    checkpoint's sampling defaults."""

    architecture: str
    family: str
    vocab_size: int
    hidden_size: int
    heads: int
    caches: tuple[LayerCache, ...]
    max_context: int
    parameters: int
    dtype: str
    tied: bool
    bos: int | None
    eos_ids: tuple[int, ...]
    generation: Mapping[str, Any] = field(default_factory=dict)

    @property
    def windows(self) -> tuple[int, ...]:
        """The distinct windows of its layers, ascending."""
        return tuple(sorted({cache.window for cache in self.caches if cache.window is not None}))


@dataclass(frozen=True)
class Profile:
    """One way to run the engine: `graph` names a section, `weights` binds initializers to expressions over tensors."""

    target: str
    graph: str
    needs: Mapping[str, Any]
    weights: Mapping[str, Any]
    max_context: int
    max_batch: int
    tolerance: float


@dataclass(frozen=True)
class Lineage:
    """The checkpoint tensors one engine tensor was made of, and how."""

    sources: tuple[str, ...] = field(metadata={"key": "from"})
    how: str


@dataclass(frozen=True)
class CheckpointFacts:
    """SHA-256 of each source file; `random_seed` is set if the weights are random numbers and not the checkpoint's."""

    files: Mapping[str, str]
    revision: str | None = None
    accepted_config: tuple[str, ...] = ()
    random_seed: int | None = None


@dataclass(frozen=True)
class Manifest:
    """All of it. The engine's writer fills in the digests: of sections, of every 16 MiB of a tensor, of the content."""

    model: ModelFacts
    formats: Mapping[str, str]
    profiles: Mapping[str, Profile]
    lineage: Mapping[str, Lineage]
    unused: Mapping[str, str]
    recipe: Mapping[str, Any]
    recipe_digest: str
    checkpoint: CheckpointFacts
    tools: Mapping[str, str]
    required_features: tuple[str, ...] = ()
    sections: Mapping[str, str] = field(default_factory=dict)
    tensors: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    content_digest: str = ""
    format: str = f"{FORMAT[0]}.{FORMAT[1]}"

    def to_json(self) -> bytes:
        """Canonical JSON in UTF-8; every key is written, also those with their default value."""
        return canonical(plain(self))

    def content(self, layout: Mapping[str, tuple[str, tuple[int, ...]]]) -> bytes:
        """What the content digest is taken of: everything, less measured values, plus dtype and shape per tensor."""
        value = plain(self)
        del value["content_digest"]
        value["sections"].pop(MEASURED, None)
        value["layout"] = {name: [dtype, list(shape)] for name, (dtype, shape) in layout.items()}
        return canonical(value)

    @staticmethod
    def from_json(text: str | bytes, *, what: str) -> Manifest:
        """Reads and checks a manifest; EngineError names `what` and the key at fault.

        A newer major version and unknown required features are refused before any other key is judged.
        """
        what = f"{what}: manifest"
        value = loads(text, what=what, error=EngineError)
        lenient = _check_version(value, what) > FORMAT[1]
        manifest: Manifest = read(Manifest, value, what, lenient)
        _check(manifest, what)
        return manifest


def is_section_name(name: str) -> bool:
    """Whether a section may be called so: slashed parts of plain characters, no way up, not a padding's name."""
    return bool(_SECTION.fullmatch(name)) and ".." not in name and not name.startswith("pad/")


def _check_version(value: Any, what: str) -> int:
    """The minor version, if this reader can read it."""
    text = value.get("format") if isinstance(value, dict) else None
    found = _VERSION.fullmatch(text) if isinstance(text, str) else None
    if not found:
        raise EngineError(f"{what}.format: a version such as '2.0'", found=f"{text!r}"[:80])
    major, minor = int(found[1]), int(found[2])
    tools = value.get("tools")
    builder = tools.get("llmc") if isinstance(tools, dict) else None
    fix = f"needs llmc >= {builder}" if isinstance(builder, str) else "needs a newer llmc"
    if major != FORMAT[0]:
        fix = fix if major > FORMAT[0] else "build the engine again with this llmc"
        raise EngineError(f"{what}: engine format {FORMAT[0]}.x", found=f"format {text}", fix=fix)
    features = value.get("required_features")
    unknown = [name for name in features if str(name) not in FEATURES] if isinstance(features, list) else []
    if unknown:
        raise EngineError(f"{what}: features this llmc knows", found=f"{unknown}"[:200], fix=fix)
    return minor


def _check(manifest: Manifest, what: str) -> None:
    """Digests are digests before anything compares them, sections have harmless names, windows see something."""
    if 0 in manifest.model.windows:
        raise EngineError(f"{what}.model.caches: windows of at least one position", found="[0]")
    digests = {
        "recipe_digest": [manifest.recipe_digest],
        "content_digest": [manifest.content_digest],
        **{f"sections.{name}": [digest] for name, digest in manifest.sections.items()},
        **{f"tensors.{name}": digests for name, digests in manifest.tensors.items()},
        **{f"checkpoint.files.{name}": [digest] for name, digest in manifest.checkpoint.files.items()},
    }
    for key, values in digests.items():
        for value in values:
            if not _DIGEST.fullmatch(value):
                raise EngineError(f"{what}.{key}: 64 lower-case hex digits", found=f"{value!r}"[:80])
    for name in manifest.sections:
        if not is_section_name(name):
            raise EngineError(f"{what}.sections: plain names", found=f"{name!r}"[:200])
