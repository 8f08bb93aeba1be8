"""The kernels by file. A process that imports them interprets them; `cubins/` compiles them in other processes.

Triton decides at the decorator, so TRITON_INTERPRET must be set before any kernel file is imported.
"""

from __future__ import annotations

from collections.abc import Collection
from importlib import import_module

from .....runtime.environment import settle
from .....runtime.errors import RecipeError, nearest
from ..call import Suite

settle("TRITON_INTERPRET", "1")

FILES = (
    "attention.flash_decode",
    "attention.flash_prefill",
    "attention.rope_cache",
    "columns",
    "embed",
    "gated",
    "head_norm",
    "latent.first_norm",
    "latent.prefill",
    "latent.product",
    "latent.rows",
    "latent.rows_decode",
    "linear.expand_fp8",
    "linear.fp4",
    "linear.fp8",
    "linear.large",
    "linear.native.gemm",
    "linear.native.stream",
    "linear.small",
    "moe.combine",
    "moe.linear",
    "moe.route",
    "moe.sort",
    "norm",
    "pointwise",
    "probe",
    "quantize_activations",
    "quantize_fp4",
    "sampling.counts",
    "sampling.sample",
    "sampling.tile_stats",
    "sampling.tokens",
)
"""Dotted names of the kernel files inside this package."""


def suites(files: Collection[str] = FILES) -> dict[str, Suite]:
    """The suites of these kernel files by file name; all if `files` is empty.

    Raises:
        RecipeError: a file does not exist; names the nearest.
    """
    for one in files:
        if one not in FILES:
            raise RecipeError(f"cannot find kernel file {one!r}{nearest(one, FILES)}", fix=f"one of {', '.join(FILES)}")
    return {name: import_module(f"{__name__}.{name}").SUITE for name in files or FILES}
