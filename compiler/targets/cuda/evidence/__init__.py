"""What the kernels in CUDA C++ have over Triton's, from machine code alone."""
