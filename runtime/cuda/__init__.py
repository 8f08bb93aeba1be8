"""NVIDIA GPUs through the driver API: a plan's cubins loaded, its weights uploaded, its steps launched and replayed."""
