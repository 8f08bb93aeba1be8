"""Families whose norms lie elsewhere than Llama's, or have another factor."""
