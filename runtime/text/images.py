"""Refuses images: an engine has a text model alone, and says which parts of the checkpoint it does not have."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any

from ..errors import Unsupported

_IMAGES = ("image", "image_url", "video", "video_url", "audio", "audio_url", "input_audio", "input_image")
"""Types of the parts of a message that templates or OpenAI's requests have beside text."""


def no_images(model: str, parts: Collection[str]) -> Unsupported:
    """The refusal to read an image with a model that has no part for it, or whose `parts` for it were left out."""
    found = ", ".join(parts) or "a text model, which has no image part"
    return Unsupported(f"cannot read an image with {model}", found=found, fix="text alone")


def refuse_images(messages: Sequence[Any], model: str, parts: Collection[str]) -> None:
    """Check that messages hold text alone: a template would write the place of an image, and nothing would be there.

    Raises:
        Unsupported: a message has a part of another type.
    """
    for message in messages if isinstance(messages, Sequence) else ():
        content = message.get("content") if isinstance(message, Mapping) else None
        for part in content if isinstance(content, list | tuple) else ():
            if isinstance(part, Mapping) and part.get("type", "text") in _IMAGES:
                raise no_images(model, parts)
