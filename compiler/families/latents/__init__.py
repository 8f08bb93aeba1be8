"""Families with latent attention, one file each."""
