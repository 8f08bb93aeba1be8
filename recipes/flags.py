"""What a build lays over its recipe: the keywords of `llmc.build`, of the command line's builds and of `with_flags`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypedDict


class BuildFlags(TypedDict, total=False):
    """What is absent or None leaves the recipe's value.

    quantize: one weight format for all ("int4", "fp8" ...) or "none". activations, kv: "fp8" or "none", for profiles
    of GPUs. targets: kinds of machine, or GPUs by name; a text has commas between them. max_context: tokens of a
    sequence. max_batch: sequences at the same time.
    """

    quantize: str | None
    activations: str | None
    kv: str | None
    targets: Sequence[str] | str | None
    max_context: int | None
    max_batch: int | None
