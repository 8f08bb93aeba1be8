"""ONNX in memory whose weights are promises; the operators of domain `llmc`, their types, rules of a graph."""
