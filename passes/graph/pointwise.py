"""The definitions of operators on single elements: factors, caps, and activations of an MLP without a gate."""

from __future__ import annotations

from typing import Any

ACTIVATIONS: dict[str, tuple[str, dict[str, Any]]] = {
    "silu": ("Swish", {}),
    "gelu": ("Gelu", {}),
    "gelu_pytorch_tanh": ("Gelu", {"approximate": "tanh"}),
    "relu": ("Relu", {}),
}
"""Activations that are operators of ONNX, with attributes."""

SCALE = """
Scale <factor> (x) => (y) {
  by = Constant <value_float: float = @factor> ()
  y = Mul (x, by)
}"""
"""y = x * factor."""

SOFTCAP = """
Softcap <cap> (x) => (y) {
  limit = Constant <value_float: float = @cap> ()
  inner = Div (x, limit)
  bent = Tanh (inner)
  y = Mul (bent, limit)
}"""
"""y = cap * tanh(x / cap) (Gemma 2, arXiv 2408.00118)."""

RELU2, XIELU = "relu2", "xielu"
_RELU2 = """
Activation (x) => (y) {
  positive = Relu (x)
  y = Mul (positive, positive)
}"""
"""The square of ReLU (arXiv 2109.08668)."""
_XIELU = """
Activation (x, alpha_p, alpha_n, beta, eps) => (y) {
  p = Softplus (alpha_p)
  raised = Softplus (alpha_n)
  n = Add (beta, raised)
  zero = Constant <value_float = 0.0> ()
  one = Constant <value_float = 1.0> ()
  slope = Mul (x, beta)
  square = Mul (x, x)
  curve = Mul (square, p)
  above = Add (curve, slope)
  low = Min (x, eps)
  grown = Exp (low)
  minus = Sub (grown, one)
  bend = Sub (minus, x)
  bent = Mul (bend, n)
  below = Add (bent, slope)
  positive = Greater (x, zero)
  y = Where (positive, above, below)
}"""
"""xIELU (arXiv 2411.13010): p x^2 + beta x above 0, else n (exp(min(x, eps)) - 1 - x) + beta x, with p = softplus of
alpha_p and n = beta + softplus of alpha_n; all four are f32 scalars [1] or []."""


def activation(overload: str) -> str:
    """An activation by its name in config.json: x f32 [..., I] -> y of its shape."""
    if overload == XIELU:
        return _XIELU
    if overload == RELU2:
        return _RELU2
    op, attributes = ACTIVATIONS[overload]
    options = ", ".join(f'{key} = "{value}"' for key, value in attributes.items())
    return f"Activation (x) => (y) {{\n y = {op} {f'<{options}>' if options else ''} (x)\n}}"
