"""Parameters of a request, the draw, and counter-based random numbers: the reference for device kernels."""
