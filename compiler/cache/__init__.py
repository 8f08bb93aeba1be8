"""Engines that `llmc run` built from checkpoints, kept for the next time."""
