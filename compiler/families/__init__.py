"""Architecture names to families: one table, so that an unknown architecture is refused with the list of known ones."""

from __future__ import annotations

from ...runtime.errors import Unsupported, nearest
from ..checkpoint.checkpoint import Checkpoint
from .family import Family, check_tensors
from .llama import LLAMA

FAMILIES: dict[str, Family] = {LLAMA.architecture: LLAMA}


def family_of(architecture: str) -> Family:
    """The family that builds an architecture.

    Raises:
        Unsupported: no family does; names the known architectures.
    """
    if architecture not in FAMILIES:
        raise Unsupported(
            f"architecture {architecture!r}{nearest(architecture, FAMILIES)}",
            found="no family builds it",
            fix=f"a checkpoint of {', '.join(sorted(FAMILIES))}",
        )
    return FAMILIES[architecture]


def check_checkpoint(checkpoint: Checkpoint) -> None:
    """Refuse a checkpoint that no family builds, or whose tensors are not those of its configuration.

    Costs nothing beside opening it: no weight is read, and neither torch nor onnx is imported.
    """
    family = family_of(checkpoint.config.architecture)
    if checkpoint.random_seed is None:
        check_tensors(family, checkpoint)
