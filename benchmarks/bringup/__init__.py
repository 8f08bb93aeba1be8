"""What a machine with a GPU does in its first fifteen minutes: steps that need numpy and the driver's bindings only."""
