"""The kernels by file. A process that imports them interprets them; `cubins/` compiles in processes of its own.

Triton decides at the decorator, so the choice must be made before any kernel file is imported.
"""

from __future__ import annotations

from importlib import import_module

from .....runtime.environment import settle
from ..call import Suite

settle("TRITON_INTERPRET", "1")

FILES = (
    "attention.flash_decode",
    "attention.flash_prefill",
    "attention.rope_cache",
    "embed",
    "gated",
    "linear.expand_fp8",
    "linear.fp8",
    "linear.large",
    "linear.small",
    "moe.combine",
    "moe.linear",
    "moe.route",
    "moe.sort",
    "norm",
    "probe",
    "quantize_activations",
    "sampling.counts",
    "sampling.sample",
    "sampling.tile_stats",
    "sampling.tokens",
)
"""Kernel files by their dotted name inside this room."""


def suites() -> dict[str, Suite]:
    """The suites of all kernel files, by file name."""
    return {name: import_module(f"{__name__}.{name}").SUITE for name in FILES}
