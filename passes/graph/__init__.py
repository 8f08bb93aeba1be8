"""ONNX in memory: operators of domain `llmc`, their types, weight expressions, and the rules that a graph obeys."""
