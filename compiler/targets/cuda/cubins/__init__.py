"""Compiles Triton kernels in separate processes; equal inputs give equal bytes; keeps cubins in a cache or a pack."""
