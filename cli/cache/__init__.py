"""Engines that `llmc run` builds from checkpoints, and `llmc cache`, which shows and removes what is kept."""
