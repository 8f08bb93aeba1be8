"""The table of families by architecture, one file each; other architectures are refused with the list of names."""

from __future__ import annotations

from importlib import import_module

from .reading import Family

__all__ = ["FAMILIES", "Family"]

_FILES = (
    "apertus",
    "arcee",
    "cohere2",
    "ernie4_5",
    "exaone4",
    "gemma",
    "gemma2",
    "gemma3_text",
    "gemma4_text",
    "glm",
    "glm4",
    "granite",
    "hunyuan_v1_dense",
    "llama",
    "ministral3",
    "mistral",
    "olmo2",
    "olmo3",
    "phi",
    "phi3",
    "qwen2",
    "qwen3",
    "seed_oss",
    "smollm3",
    "stablelm",
    "starcoder2",
    # one line a family
)
FAMILIES: dict[str, Family] = {
    family.architecture: family for family in (import_module(f".{file}", __name__).FAMILY for file in _FILES)
}
"""Family by architecture, as `architectures` in config.json names it."""
