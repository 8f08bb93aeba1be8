"""Builds the logical graph from layer records."""
