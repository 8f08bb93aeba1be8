"""The definitions of attention over a cache: what rotates, what is normed, and what a token sees.

Letters and shapes as in `ops.py`.
"""

from __future__ import annotations

# x [B,S,N*D], weight [D] -> RMSNorm of each head of D
HEAD_NORM = """
HeadNorm <epsilon> (x, weight) => (y) {
  zeros = Constant <value_ints = [0, 0]> ()
  minus = Constant <value_ints = [-1]> ()
  size = Shape (weight)
  split = Concat <axis = 0> (zeros, minus, size)
  heads = Reshape (x, split)
  normed = RMSNormalization <axis = -1, epsilon: float = @epsilon> (heads, weight)
  joined = Concat <axis = 0> (zeros, minus)
  y = Reshape (normed, joined)
}"""

WINDOWED, NORMED = "windowed", "normed"
"""In overloads of attention: a token sees `window` positions, its own included; heads of q and k are normed first."""

# what a token of the new ones sees: all before it, or also no more than a window of them
_SEES_ALL = """
  new = Shape <start = 1, end = 2> (q)
  total = Add (past, new)
  a = Attention <is_causal = 1, scale: float = @scale> (qt, present_key, present_value, , , , total)"""
_SEES_WINDOW = """
  zero = Constant <value_int = 0> ()
  one = Constant <value_int = 1> ()
  reach = Constant <value_int: int = @window> ()
  new = Shape <start = 1, end = 2> (q)
  capacity = Shape <start = 2, end = 3> (present_key)
  stop = Squeeze (new, none)
  steps = Range (zero, stop, one)
  end = Squeeze (capacity, none)
  columns = Range (zero, end, one)
  axes = Constant <value_ints = [1, 2, 3]> ()
  outer = Constant <value_ints = [0, 1, 3]> ()
  begins = Unsqueeze (past, axes)
  offsets = Unsqueeze (steps, outer)
  position = Add (begins, offsets)
  distance = Sub (position, columns)
  seen = GreaterOrEqual (distance, zero)
  near = Less (distance, reach)
  mask = And (seen, near)
  a = Attention <scale: float = @scale> (qt, present_key, present_value, mask)"""


def _attention_steps(overload: str) -> str:
    """q [B,S,A*D], k v [B,S,K*D], past_key past_value [B,K,C,D], past_lengths [B] -> y [B,S,A*D], present as past."""
    return f"""
  zeros = Constant <value_ints = [0, 0]> ()
  minus = Constant <value_ints = [-1]> ()
  size = Constant <value_int: int = @head_dim> ()
  none = Constant <value_ints = [0]> ()
  size1 = Unsqueeze (size, none)
  split = Concat <axis = 0> (zeros, minus, size1)
  q4 = Reshape (q, split)
  k4 = Reshape (k, split)
  v4 = Reshape (v, split)
  qt = Transpose <perm = [0, 2, 1, 3]> (q4)
  kt = Transpose <perm = [0, 2, 1, 3]> (k4)
  vt = Transpose <perm = [0, 2, 1, 3]> (v4)
  past = Cast <to = 7> (past_lengths)
  present_key = TensorScatter <axis = -2> (past_key, kt, past)
  present_value = TensorScatter <axis = -2> (past_value, vt, past)
{_SEES_WINDOW if WINDOWED in overload else _SEES_ALL}
  at = Transpose <perm = [0, 2, 1, 3]> (a)
  joined = Concat <axis = 0> (zeros, minus)
  y = Reshape (at, joined)
}}"""


def cached_attention(overload: str) -> str:
    window = ", window" if WINDOWED in overload else ""
    return f"""
CachedAttention <heads, kv_heads, head_dim, scale{window}>
  (q, k, v, past_key, past_value, past_lengths) => (y, present_key, present_value) {{{_attention_steps(overload)}"""


def rope_attention(overload: str) -> str:
    """qkv [B,S,(A+2K)*D] queries, keys, values side by side, cos sin [C,D/2], positions [B,S], the rest as
    CachedAttention; norms are weights [D] of a HeadNorm of q and of k before rope."""
    window = ", window" if WINDOWED in overload else ""
    epsilon, norms, plain = "", "", ("unrotated_q", "unrotated_k")
    if NORMED in overload:
        epsilon, norms, plain = ", epsilon", ", q_norm, k_norm", ("normed_q", "normed_k")
    normed = """
  ends = Constant <value_ints = [0, 0]> ()
  rest = Constant <value_ints = [-1]> ()
  row = Unsqueeze (width, first)
  by_head = Concat <axis = 0> (ends, rest, row)
  side_by_side = Concat <axis = 0> (ends, rest)""" + "".join(
        f"""
  heads_{x} = Reshape (unrotated_{x}, by_head)
  normed_heads_{x} = RMSNormalization <axis = -1, epsilon: float = @epsilon> (heads_{x}, {x}_norm)
  normed_{x} = Reshape (normed_heads_{x}, side_by_side)"""
        for x in "qk"
    )
    return f"""
RopeAttention <heads, kv_heads, head_dim, scale, interleaved{window}{epsilon}>
  (qkv, cos, sin, positions, past_key, past_value, past_lengths{norms}) => (y, present_key, present_value) {{
  a_count = Constant <value_int: int = @heads> ()
  k_count = Constant <value_int: int = @kv_heads> ()
  width = Constant <value_int: int = @head_dim> ()
  first = Constant <value_ints = [0]> ()
  a_width = Mul (a_count, width)
  k_width = Mul (k_count, width)
  a_widths = Unsqueeze (a_width, first)
  k_widths = Unsqueeze (k_width, first)
  widths = Concat <axis = 0> (a_widths, k_widths, k_widths)
  unrotated_q, unrotated_k, v = Split <axis = -1> (qkv, widths){normed if norms else ""}
  q = RotaryEmbedding <num_heads: int = @heads, interleaved: int = @interleaved> ({plain[0]}, cos, sin, positions)
  k = RotaryEmbedding <num_heads: int = @kv_heads, interleaved: int = @interleaved> ({plain[1]}, cos, sin, positions)
{_attention_steps(overload)}"""
