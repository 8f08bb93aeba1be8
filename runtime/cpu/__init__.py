"""Runs an engine's ONNX graph on ONNX Runtime with weights mapped from the file."""
