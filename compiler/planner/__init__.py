"""Prices deployments of a model; see README.md."""
