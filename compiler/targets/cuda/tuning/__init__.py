"""Measures tiles of an engine's linears on a GPU, and reads and writes tables of tiles."""
