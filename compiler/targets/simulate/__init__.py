"""A GPU profile on any CPU: the same plan and kernels, executed by Triton's interpreter."""

from ..cuda import kernels as _  # noqa: F401  says so to Triton, which asks once, when it is first imported
