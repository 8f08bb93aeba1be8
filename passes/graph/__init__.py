"""ONNX in memory whose weights are expressions over stored tensors; the operators of domain `llmc`, their types, rules of a graph."""
