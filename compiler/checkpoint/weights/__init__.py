"""Tensors of weight files, or random ones, by rows; what of the files is read."""
