"""Families with LayerNorms, parts side by side, or MLPs without a gate."""
