"""Parts of a checkpoint that an engine does not have, such as a vision tower: what the manifest and refusals say.

They are among the manifest's unused tensors: a module's name, with a reason that says what it is.
"""

from __future__ import annotations

from collections.abc import Mapping

from ..errors import Unsupported

_LEFT_OUT = " left out: "


def left_out(part: str, tensors: int) -> str:
    """The reason of a module that is left out, such as "vision tower left out: 390 tensors"."""
    return f"{part}{_LEFT_OUT}{tensors} tensor{'s' * (tensors != 1)}"


def parts_left_out(unused: Mapping[str, str]) -> list[str]:
    """The parts among the unused tensors, in words."""
    return [f"{reason} of {name}" for name, reason in unused.items() if _LEFT_OUT in reason]


def no_images(model: str, unused: Mapping[str, str]) -> Unsupported:
    """The refusal to read an image with a model that has no part for it, or no longer."""
    parts = parts_left_out(unused)
    found = ", ".join(parts) or "a text model, which has no image part"
    return Unsupported(f"cannot read an image with {model}", found=found, fix="text alone")
