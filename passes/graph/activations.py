"""`QuantizeActivations` as ONNX text: activations rounded to E4M3 by token, or to E2M1 by groups along K."""

from __future__ import annotations

from ...quantize.activations import GROUP, NVFP4_UNIT, SMALLEST
from ...quantize.formats.mxfp4 import ROUND_UP_FROM

_E4M3 = """
QuantizeActivations (x) => (y) {
  last = Constant <value_ints = [-1]> ()
  least = Constant <value_float = 7.888609052210118e-31> ()
  largest = Constant <value_float = 448.0> ()
  size = Abs (x)
  row = ReduceMax <keepdims = 1> (size, last)
  bounded = Max (row, least)
  scale = Div (bounded, largest)
  ratio = Div (x, scale)
  codes = Cast <to = 17> (ratio)
  wide = Cast <to = 1> (codes)
  y = Mul (wide, scale)
}"""
"""x f32 [..., K] -> y, x rounded to E4M3 with a scale per token, max|x| / 448: the left factor of a W8A8 linear."""

_E4M3_SCALE = """
  most = Constant <value_float = {most!r}> ()
  least = Constant <value_float = 0.001953125> ()
  top = Constant <value_float = 448.0> ()
  unit = Constant <value_float = {unit!r}> ()
  ratio = Div (largest, most)
  high = Min (ratio, top)
  bounded = Max (high, least)
  stored = Cast <to = 17> (bounded)
  wide = Cast <to = 1> (stored)
  scale = Mul (wide, unit)"""
"""`largest` f32 [groups, 1] -> `scale`: largest / 6 rounded to E4M3 times the unit, never 0 and at most 448 units."""

_E8M0_SCALE = """
  two = Constant <value_float = 2.0> ()
  least = Constant <value_float = {least!r}> ()
  turn = Constant <value_float = {turn!r}> ()
  four = Constant <value_float = 4.0> ()
  natural = Log (two)
  bounded = Max (largest, least)
  log = Log (bounded)
  ratio = Div (log, natural)
  exponent = Floor (ratio)
  power = Pow (two, exponent)
  mantissa = Div (bounded, power)
  above = GreaterOrEqual (mantissa, turn)
  doubled = Mul (power, two)
  chosen = Where (above, doubled, power)
  scale = Div (chosen, four)"""
"""`largest` -> `scale`, a power of two: a logarithm that is off by one next to a power of two gives the same scale."""

_E2M1 = """
QuantizeActivations (x) => (y) {{
  groups = Constant <value_ints = [-1, {group}]> ()
  last = Constant <value_ints = [-1]> ()
  one = Constant <value_float = 1.0> ()
  half = Constant <value_float = 0.5> ()
  low = Constant <value_float = 2.0> ()
  middle = Constant <value_float = 4.0> ()
  end = Constant <value_float = 6.0> ()
  shape = Shape (x)
  grouped = Reshape (x, groups)
  size = Abs (grouped)
  largest = ReduceMax <keepdims = 1> (size, last)
  {scale}
  number = Div (size, scale)
  in_low = Less (number, low)
  in_middle = Less (number, middle)
  upper = Where (in_middle, one, low)
  step = Where (in_low, half, upper)
  steps = Div (number, step)
  count = Round (steps)
  rounded = Mul (count, step)
  code = Min (rounded, end)
  signs = Sign (grouped)
  signed = Mul (code, signs)
  scaled = Mul (signed, scale)
  y = Reshape (scaled, shape)
}}"""
"""x f32 [..., K] -> y, the nearest E2M1 numbers of x / scale, ties to even, times the scale of each group."""


def nvfp4(unit: float) -> str:
    """The definition of nvfp4 activations, with what an E4M3 scale of 1 stands for, a power of two."""
    return _E2M1.format(group=GROUP["nvfp4"], scale=_E4M3_SCALE.format(most=6 * unit, unit=unit))


def quantize_activations(overload: str) -> str:
    """The definition for an overload: "" is E4M3 with a scale per token; "nvfp4" and "mxfp4" are E2M1 in groups."""
    if overload == "nvfp4":
        return nvfp4(NVFP4_UNIT)
    if overload == "mxfp4":
        scale = _E8M0_SCALE.format(least=4 * SMALLEST, turn=ROUND_UP_FROM)
        return _E2M1.format(group=GROUP["mxfp4"], scale=scale)
    return _E4M3
