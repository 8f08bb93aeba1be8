"""Families whose routers choose experts with a bias, one file each."""
