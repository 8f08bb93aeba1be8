"""The definition of multi-head latent attention: keys and values are made of one small cached row for all heads.

DeepSeek-V2 (arXiv 2405.04434, section 2.1). Letters as in `ops.py`; besides, N and R are the elements of a head of q
without rope and with it, V those of a value, L the rank of the latent.
"""

from __future__ import annotations

TEMPERED = "tempered"
"""In overloads of `LatentAttention`: queries are multiplied by a factor of their position (Mistral 4)."""


def latent_attention(overload: str) -> str:
    """q f32 [B, S, A*(N+R)], latent f32 [B, S, L], key f32 [B, S, R], weight f32 [A*(N+V), L], cos and sin f32
    [P, R/2], positions i64 [B, S], past_key f32 [B, 1, C, L+R], past_lengths i32 [B], with TEMPERED factors f32 [P, 1]
    -> y f32 [B, S, A*V], present_key f32 [B, 1, C, L+R], which holds the latents and the keys that all heads share.

    A head's key is its rows of weight times the latent, N of them, beside the shared key; its value is the other V
    rows times the latent. Rope turns the last R elements of a head of q, and the shared key.
    """
    tempered = TEMPERED in overload
    return f"""
LatentAttention <heads, nope, rope, value, scale, interleaved>
  (q, latent, key, weight, cos, sin, positions, past_key, past_lengths{", factors" * tempered}) => (y, present_key) {{
  first = Constant <value_ints = [0]> ()
  one = Constant <value_ints = [1]> ()
  minus = Constant <value_ints = [-1]> ()
  zeros = Constant <value_ints = [0, 0]> ()
  a_count = Constant <value_int: int = @heads> ()
  n_count = Constant <value_int: int = @nope> ()
  r_count = Constant <value_int: int = @rope> ()
  v_count = Constant <value_int: int = @value> ()
  a_size = Unsqueeze (a_count, first)
  n_size = Unsqueeze (n_count, first)
  r_size = Unsqueeze (r_count, first)
  v_size = Unsqueeze (v_count, first)
  by_head = Concat <axis = 0> (zeros, a_size, minus)
  joined = Concat <axis = 0> (zeros, minus)
  q_heads = Reshape (q, by_head)
  of_q = Concat <axis = 0> (n_size, r_size)
  q_nope, q_raw = Split <axis = -1> (q_heads, of_q)
  q_flat = Reshape (q_raw, joined)
  q_turned = RotaryEmbedding <num_heads: int = @heads, interleaved: int = @interleaved> (q_flat, cos, sin, positions)
  q_pe = Reshape (q_turned, by_head)
  q_both = Concat <axis = -1> (q_nope, q_pe)
  {_FACTORS if tempered else "q_scaled = Identity (q_both)"}
  qt = Transpose <perm = [0, 2, 1, 3]> (q_scaled)
  key_turned = RotaryEmbedding <num_heads = 1, interleaved: int = @interleaved> (key, cos, sin, positions)
  rows = Concat <axis = -1> (latent, key_turned)
  new_rows = Unsqueeze (rows, one)
  past = Cast <to = 7> (past_lengths)
  present_key = TensorScatter <axis = -2> (past_key, new_rows, past)
  l_size = Shape <start = -1> (latent)
  of_cache = Concat <axis = 0> (l_size, r_size)
  latents, shared = Split <axis = -1> (present_key, of_cache)
  turned = Transpose <perm = [1, 0]> (weight)
  expanded = MatMul (latents, turned)
  lone = Squeeze (expanded, one)
  heads = Reshape (lone, by_head)
  heads_first = Transpose <perm = [0, 2, 1, 3]> (heads)
  of_kv = Concat <axis = 0> (n_size, v_size)
  k_nope, v = Split <axis = -1> (heads_first, of_kv)
  lead = Shape <end = -1> (k_nope)
  k_size = Concat <axis = 0> (lead, r_size)
  k_pe = Expand (shared, k_size)
  k = Concat <axis = -1> (k_nope, k_pe)
  new = Shape <start = 1, end = 2> (q)
  total = Add (past, new)
  a = Attention <is_causal = 1, scale: float = @scale> (qt, k, v, , , , total)
  at = Transpose <perm = [0, 2, 1, 3]> (a)
  y = Reshape (at, joined)
}}"""


_FACTORS = """axes = Constant <value_ints = [2]> ()
  by = Gather <axis = 0> (factors, positions)
  by4 = Unsqueeze (by, axes)
  q_scaled = Mul (q_both, by4)"""
