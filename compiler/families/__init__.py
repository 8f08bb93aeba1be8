"""Families by architecture: one table, one file each; what no file builds is refused with the list of known names."""

from __future__ import annotations

from .llama import LLAMA
from .reading import Family

__all__ = ["FAMILIES", "Family"]

FAMILIES: dict[str, Family] = {family.architecture: family for family in (LLAMA,)}
"""Architecture, as `architectures` in config.json names it, to what builds it."""
