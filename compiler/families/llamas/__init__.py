"""Families whose layer is Llama's, with what few fields change."""
