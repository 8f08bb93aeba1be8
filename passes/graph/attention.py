"""The definitions of attention over a cache: rope, norms of heads, and the mask.

Letters and shapes as in `ops.py`.
"""

from __future__ import annotations

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
"""x f32 [B, S, N*D], weight f32 [D] -> y, the RMSNorm of each head of D."""

WINDOWED, NORMED = "windowed", "normed"
"""In overloads of attention: a token attends to `window` positions, its own included; heads of q and k are normed."""

_SEES_ALL = """
  new = Shape <start = 1, end = 2> (q)
  total = Add (past, new)
  a = Attention <is_causal = 1, scale: float = @scale> (qt, present_key, present_value, , , , total)"""
"""A new token attends to itself and to all tokens before it."""
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
"""A new token attends to itself and to the `window` - 1 tokens before it."""


_SHAPES = """
  zeros = Constant <value_ints = [0, 0]> ()
  minus = Constant <value_ints = [-1]> ()
  size = Constant <value_int: int = @head_dim> ()
  none = Constant <value_ints = [0]> ()
  size1 = Unsqueeze (size, none)
  split = Concat <axis = 0> (zeros, minus, size1)
  joined = Concat <axis = 0> (zeros, minus)"""
"""Reshapes [B, S, A*D] to heads by `split` [0, 0, -1, D], and back by `joined` [0, 0, -1]."""


def _attention_steps(overload: str) -> str:
    """q f32 [B, S, A*D], k and v f32 [B, S, K*D], past_key and past_value f32 [B, K, C, D], past_lengths i32 [B]
    -> y f32 [B, S, A*D], present_key and present_value f32 [B, K, C, D]."""
    return f"""
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
  y = Reshape (at, joined)
}}"""


def _window(overload: str) -> str:
    return ", window" if WINDOWED in overload else ""


def cached_attention(overload: str) -> str:
    return f"""
CachedAttention <heads, kv_heads, head_dim, scale{_window(overload)}>
  (q, k, v, past_key, past_value, past_lengths) => (y, present_key, present_value) {{{_SHAPES}
{_attention_steps(overload)}"""


def rope_attention(overload: str) -> str:
    """qkv f32 [B, S, (A+2K)*D] holds queries, keys and values side by side; cos and sin f32 [C, D/2], positions i64
    [B, S], all else as in CachedAttention. q_norm and k_norm f32 [D] are the weights of a HeadNorm before rope."""
    epsilon, norms, plain, normed = "", "", "unrotated", ""
    if NORMED in overload:
        epsilon, norms, plain = ", epsilon", ", q_norm, k_norm", "normed"
        normed = "".join(
            f"""
  heads_{x} = Reshape (unrotated_{x}, split)
  normed_heads_{x} = RMSNormalization <axis = -1, epsilon: float = @epsilon> (heads_{x}, {x}_norm)
  normed_{x} = Reshape (normed_heads_{x}, joined)"""
            for x in "qk"
        )
    return f"""
RopeAttention <heads, kv_heads, head_dim, scale, interleaved{_window(overload)}{epsilon}>
  (qkv, cos, sin, positions, past_key, past_value, past_lengths{norms}) => (y, present_key, present_value) {{{_SHAPES}
  a_count = Constant <value_int: int = @heads> ()
  k_count = Constant <value_int: int = @kv_heads> ()
  a_width = Mul (a_count, size1)
  k_width = Mul (k_count, size1)
  widths = Concat <axis = 0> (a_width, k_width, k_width)
  unrotated_q, unrotated_k, v = Split <axis = -1> (qkv, widths){normed}
  q = RotaryEmbedding <num_heads: int = @heads, interleaved: int = @interleaved> ({plain}_q, cos, sin, positions)
  k = RotaryEmbedding <num_heads: int = @kv_heads, interleaved: int = @interleaved> ({plain}_k, cos, sin, positions)
{_attention_steps(overload)}"""
