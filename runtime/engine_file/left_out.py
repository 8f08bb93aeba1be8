"""Parts of a checkpoint that an engine does not have, such as a vision tower: what the manifest and refusals say.

They are among the manifest's unused tensors: a module's name, with a reason that says what it is.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any

from ..errors import Unsupported

_LEFT_OUT = " left out: "
_IMAGES = ("image", "image_url", "video", "video_url", "audio", "audio_url", "input_audio", "input_image")
"""Types of the parts of a message that templates or OpenAI's requests have beside text."""


def left_out(part: str, tensors: int) -> str:
    """The reason of a module that is left out, such as "vision tower left out: 390 tensors"."""
    return f"{part}{_LEFT_OUT}{tensors} tensor{'s' * (tensors != 1)}"


def parts_left_out(unused: Mapping[str, str]) -> list[str]:
    """The parts among the unused tensors, in words."""
    return [f"{reason} of {name}" for name, reason in unused.items() if _LEFT_OUT in reason]


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
