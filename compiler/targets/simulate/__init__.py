"""A GPU profile on any CPU: the same plan and kernels, executed by Triton's interpreter."""
