"""Runs any graph at any stage on ONNX Runtime in fp32, block by block, in little memory."""
