"""Where the tests find the tree and the checkpoint that comes with it."""

from __future__ import annotations

from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PACKAGE = ("cli", "compiler", "passes", "quantize", "recipes", "runtime")
"""The package's folders in the root."""
PICO = ROOT / "examples" / "checkpoints" / "pico-python"
SAMPLES = Path(__file__).resolve().parent / "samples"
