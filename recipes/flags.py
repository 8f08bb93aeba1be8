"""The options of a build that override its recipe: keywords of `llmc.build` and flags of the command line."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypedDict


class BuildFlags(TypedDict, total=False):
    """An option that is absent or None leaves the recipe's value."""

    quantize: str | None
    """One weight format for all linears ("int4", "fp8" ...), or "none"; a build also takes "auto"."""
    activations: str | None
    """For profiles of GPUs: "fp8", "nvfp4" or "mxfp4", the last two beside weights in that format; or "none"."""
    kv: str | None
    """For profiles of GPUs: "fp8" or "none"."""
    targets: Sequence[str] | str | None
    """Targets or names of GPUs; in a text, commas separate them."""
    parallel: Sequence[str] | str | None
    """Splits over ranks, such as tp4-pp2 or tp2-ep2; in a text, commas separate them. A build also takes "auto"."""
    max_context: int | None
    """Tokens of a sequence."""
    max_batch: int | None
    """Sequences at the same time."""
