"""Latent attention over a paged cache of rows, each of which is keys and values of all heads."""
