"""Says which optional packages a command lacks before it starts, with the line that installs them."""

from __future__ import annotations

from importlib.util import find_spec

from ...runtime.errors import ResourceError, install_hint
from ...runtime.guard.limits import BUILD_BYTES, demand_address_space

EXTRAS = {
    "build": ("torch", "onnx", "onnx_ir"),
    "cuda-build": ("torch", "onnx", "onnx_ir", "triton"),
    "hub": ("huggingface_hub",),
    "parallel": ("torch",),
}


def missing(extra: str) -> tuple[str, ...]:
    """The modules of an extra that cannot be imported here."""
    return tuple(module for module in EXTRAS[extra] if find_spec(module) is None)


def need(extra: str, what: str) -> None:
    """Check that an extra is installed; `what` is the command or flag that uses it.

    Raises:
        ResourceError: it is not, or a user's limit leaves no room for it.
    """
    if absent := missing(extra):
        raise ResourceError(
            f"cannot use {what} without the extra {extra!r}",
            found=f"not installed: {', '.join(absent)}",
            fix=install_hint(extra),
        )
    if "torch" in EXTRAS[extra]:
        demand_address_space(BUILD_BYTES, f"use {what}")
