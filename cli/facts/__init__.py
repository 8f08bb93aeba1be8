"""The facts of a checkpoint, as JSON and as text."""
