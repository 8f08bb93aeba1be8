"""NVIDIA GPUs: Triton kernels compiled ahead of time, and a launch plan. Nothing here needs a GPU."""
