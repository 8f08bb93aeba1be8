"""Checkpoints of images and text as a normal input: their text model is compiled, the rest is left out by name."""
