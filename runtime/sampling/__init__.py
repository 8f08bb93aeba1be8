"""Parameters of a request, the draw, and random numbers by counter: what device kernels must agree with."""
