"""Makes the folder that is carried to a machine with a GPU; needs Triton and torch, and no GPU."""
