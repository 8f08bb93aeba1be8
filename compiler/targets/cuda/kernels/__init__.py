"""The kernels by file. A process that imports them interprets them; `compile.py` compiles in processes of its own.

Triton decides at the decorator, so the choice must be made before any kernel file is imported.
"""

from __future__ import annotations

import os
from importlib import import_module

from ..kernel import Suite

os.environ.setdefault("TRITON_INTERPRET", "1")

FILES = (
    "attention_decode",
    "attention_prefill",
    "counts",
    "embed",
    "expand_fp8",
    "gated",
    "linear_fp8",
    "linear_large",
    "linear_small",
    "moe_combine",
    "moe_linear",
    "moe_route",
    "moe_sort",
    "norm",
    "quantize_activations",
    "rope_cache",
    "sample",
    "tile_stats",
    "tokens",
)


def suites() -> dict[str, Suite]:
    """The suites of all kernel files, by file name."""
    return {name: import_module(f"{__name__}.{name}").SUITE for name in FILES}
