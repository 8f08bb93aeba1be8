"""A GPU profile on any CPU: the same plan and kernels, executed by Triton's interpreter."""

from ..cuda import kernels as _  # noqa: F401  turns the interpreter on, before Triton is first imported
