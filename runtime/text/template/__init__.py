"""Chat templates as transformers renders them, evaluated within a budget."""

from .template import Template

__all__ = ["Template"]
