"""NVIDIA GPUs through the driver API: loads a plan's cubins, uploads its weights, launches and replays its steps."""
