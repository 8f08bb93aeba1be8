"""What a loaded engine says of itself: the model, its formats, and the profile that runs."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from .file import EngineFile

_LEFT_OUT = " left out: "
"""What the manifest's unused tensors say of a part of the checkpoint that is there once, by its module."""


def left_out(part: str, tensors: int) -> str:
    """The reason of a module that is left out, such as "vision tower left out: 390 tensors"."""
    return f"{part}{_LEFT_OUT}{tensors} tensor{'s' * (tensors != 1)}"


_DRAFTING = "an extra layer that drafts tokens"


def drafting(tensors: int) -> str:
    """The reason of a module, or a layer after the last one, that predicts further tokens."""
    return f"{_DRAFTING}: {tensors} tensor{'s' * (tensors != 1)}"


def drafts_left_out(unused: Mapping[str, str]) -> list[str]:
    """Those among the unused tensors of a manifest, in words."""
    return [f"left out: {reason} of {name}" for name, reason in unused.items() if reason.startswith(_DRAFTING)]


def parts_left_out(unused: Mapping[str, str]) -> list[str]:
    """The parts among the unused tensors of a manifest, in words."""
    return [f"{reason} of {name}" for name, reason in unused.items() if _LEFT_OUT in reason]


@dataclass(frozen=True)
class EngineInfo:
    """The facts of an engine and of the profile that was loaded. `repr` is one line of them."""

    path: Path
    name: str | None
    """The model's name; None, here and below, if nothing says it."""
    hub_id: str | None
    revision: str | None
    licence: str | None
    recipe: str | None
    """The bundled recipe that it was built by."""
    architecture: str
    family: str
    parameters: int
    layers: int
    hidden_size: int
    vocab_size: int
    dtype: str
    """Of the weights that are in no format."""
    formats: Mapping[str, int]
    """How many modules are stored in each weight format; empty if none is quantized."""
    profile: str
    target: str
    profiles: tuple[str, ...]
    """All of the file."""
    max_context: int
    """Tokens of a sequence, prompt and output together."""
    max_batch: int
    """Sequences that run at the same time."""
    chat: bool
    """Whether there is a chat template, as `Engine.chat` needs."""
    content_digest: str
    left_out: tuple[str, ...] = ()
    """Parts of the checkpoint that the engine does not have, such as a vision tower."""

    def __repr__(self) -> str:
        formats = "+".join(sorted(self.formats)) or self.dtype
        named = f"{self.name}, " if self.name else ""
        return (
            f"{named}{self.architecture}, {self.parameters:,} parameters, {formats}, profile {self.profile}, "
            f"context {self.max_context}, batch {self.max_batch}{'' if self.chat else ', no chat template'}"
        )


def info_of(file: EngineFile, profile: str, *, sequences: int, chat: bool) -> EngineInfo:
    """The facts of an open engine, of which `profile` is loaded for so many `sequences` at a time."""
    manifest = file.manifest
    model, source, loaded = manifest.model, manifest.checkpoint, manifest.profiles[profile]
    return EngineInfo(
        path=file.path,
        name=source.name,
        hub_id=source.hub_id,
        revision=source.revision,
        licence=source.licence,
        recipe=manifest.recipe_name,
        architecture=model.architecture,
        family=model.family,
        parameters=model.parameters,
        layers=len(model.caches),
        hidden_size=model.hidden_size,
        vocab_size=model.vocab_size,
        dtype=model.dtype,
        formats=dict(Counter(manifest.formats.values())),
        profile=profile,
        target=loaded.target,
        profiles=tuple(manifest.profiles),
        max_context=loaded.max_context,
        max_batch=sequences,
        chat=chat,
        content_digest=manifest.content_digest,
        left_out=tuple(parts_left_out(manifest.unused)),
    )
