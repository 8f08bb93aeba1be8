"""Compiles Triton kernels in processes of their own; equal inputs give equal bytes; keeps them in a cache or a pack."""
