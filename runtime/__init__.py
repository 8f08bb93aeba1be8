"""Opens an engine and runs it; imports no torch, onnx or triton."""
