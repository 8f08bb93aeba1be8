"""The definitions of attention over a cache: rope, norms of heads, and the mask.

Letters and shapes as in `ops.py`.
"""

from __future__ import annotations

LAYER, EACH = "layer", "each"
"""In overloads of HeadNorm: a LayerNorm and no RMSNorm; each head has a weight of its own."""


def head_norm(overload: str) -> str:
    """x f32 [B, S, N*D], weight f32 [D], or [N, D] with EACH, perhaps bias f32 [D] -> y, the norm of each head of D."""
    bias = _bias(overload)
    return f"""
HeadNorm <epsilon> (x, weight{bias}) => (y) {{{_norm_of_heads(overload, "x", "y")}
}}"""


def part_norm(overload: str) -> str:
    """The same of the columns of x from `start` to `stop`; the others stay as they are."""
    bias = _bias(overload)
    return f"""
PartNorm <start, stop, epsilon> (x, weight{bias}) => (y) {{
  first = Constant <value_int: int = @start> ()
  last = Constant <value_int: int = @stop> ()
  none = Constant <value_ints = [0]> ()
  first1 = Unsqueeze (first, none)
  last1 = Unsqueeze (last, none)
  axis = Constant <value_ints = [-1]> ()
  end = Shape <start = -1> (x)
  before = Slice (x, none, first1, axis)
  part = Slice (x, first1, last1, axis)
  after = Slice (x, last1, end, axis){_norm_of_heads(overload, "part", "done")}
  y = Concat <axis = -1> (before, done, after)
}}"""


def _bias(overload: str) -> str:
    return ", bias" if "bias" in overload.split("_") else ""


def _norm_of_heads(overload: str, x: str, y: str) -> str:
    kinds = overload.split("_")
    op = "LayerNormalization" if LAYER in kinds else "RMSNormalization"
    normed = f"normed = {op} <axis = -1, epsilon: float = @epsilon> (heads, weight{_bias(overload)})"
    if EACH in kinds:
        normed = f"""one = Constant <value_float = 1.0> ()
  ones = Expand (one, size)
  plain = {op} <axis = -1, epsilon: float = @epsilon> (heads, ones)
  normed = Mul (plain, weight)"""
    return f"""
  zeros = Constant <value_ints = [0, 0]> ()
  minus = Constant <value_ints = [-1]> ()
  size = Shape <start = -1> (weight)
  split = Concat <axis = 0> (zeros, minus, size)
  heads = Reshape ({x}, split)
  {normed}
  joined = Concat <axis = 0> (zeros, minus)
  {y} = Reshape (normed, joined)"""


WINDOWED, CHUNKED, CAPPED, SINKS = "windowed", "chunked", "capped", "sinks"
"""In overloads of attention: a token attends to `window` positions, its own included; or to those of its own `chunk`,
of which the first begins at position 0; scores become softcap * tanh(score / softcap); a score for each head has no
value."""
NORMED, AFTER, PARTIAL, UNTURNED, APART = "normed", "after", "partial", "unturned", "apart"
"""In overloads of attention with rope: heads of q and k are normed, and that after rope; rope turns the first
`rotary_embedding_dim` elements of a head, or none; q has tables of its own."""


def overload(*, window: int | None, chunk: int | None = None, softcap: float | None = None, sinks: bool = False) -> str:
    """The overload of attention with these features, of which a window and chunks are never together."""
    capped = softcap is not None
    features = ((WINDOWED, window is not None), (CHUNKED, chunk is not None), (CAPPED, capped), (SINKS, sinks))
    return "_".join(name for name, has in features if has)


_MASK = """
  zero = Constant <value_int = 0> ()
  one = Constant <value_int = 1> ()
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
  seen = GreaterOrEqual (distance, zero)"""
"""`seen`: a new token attends to itself and to all tokens before it."""
_NEAR = """
  reach = Constant <value_int: int = @window> ()
  near = Less (distance, reach)
  mask = And (seen, near)"""
"""A new token attends to itself and to the `window` - 1 tokens before it."""
_TOGETHER = """
  length = Constant <value_int: int = @chunk> ()
  own_chunk = Div (position, length)
  chunks = Div (columns, length)
  together = Equal (own_chunk, chunks)
  mask = And (seen, together)"""
"""A new token attends to itself and to the tokens before it in its own chunk."""
_WITH_SINKS = """
  a_count = Constant <value_int: int = @heads> ()
  k_count = Constant <value_int: int = @kv_heads> ()
  a_size = Unsqueeze (a_count, none)
  k_size = Unsqueeze (k_count, none)
  batch = Shape <start = 0, end = 1> (q)
  by_group = Concat <axis = 0> (batch, k_size, minus, size1)
  by_head = Concat <axis = 0> (batch, a_size, new, capacity)
  grouped = Reshape (qt, by_group)
  turned = Transpose <perm = [0, 1, 3, 2]> (present_key)
  products = MatMul (grouped, turned)
  apart = Reshape (products, by_head)
  factor = Constant <value_float: float = @scale> ()
  scaled = Mul (apart, factor)
  never = Constant <value_float = -3.0e38> ()
  masked = Where ({mask}, {scores}, never)
  column = Constant <value_ints = [1]> ()
  of_head = Concat <axis = 0> (column, a_size, column, column)
  each = Reshape (sinks, of_head)
  every = Concat <axis = 0> (batch, a_size, new, column)
  extra = Expand (each, every)
  all = Concat <axis = -1> (masked, extra)
  shares = Softmax <axis = -1> (all)
  last = Constant <value_ints = [3]> ()
  kept = Slice (shares, none, capacity, last)
  wide = Concat <axis = 0> (batch, k_size, minus, capacity)
  weights = Reshape (kept, wide)
  mixed = MatMul (weights, present_value)
  narrow = Concat <axis = 0> (batch, a_size, new, size1)
  a = Reshape (mixed, narrow)"""
"""Attention with sinks (gpt-oss): the softmax has one more column."""
_SOFTCAPPED = """
  limit = Constant <value_float: float = @softcap> ()
  inner = Div (scaled, limit)
  bent = Tanh (inner)
  capped = Mul (bent, limit)
  masked ="""


def _softmax(overload: str) -> str:
    """Lines from qt, present_key and present_value to `a` f32 [B, A, S, D]."""
    new = "\n  new = Shape <start = 1, end = 2> (q)"
    capped = CAPPED in overload
    cap = ", softcap: float = @softcap" if capped else ""
    part = _NEAR if WINDOWED in overload else _TOGETHER if CHUNKED in overload else ""
    if SINKS in overload:
        text = _WITH_SINKS.format(mask="mask" if part else "seen", scores="capped" if capped else "scaled")
        text = text.replace("\n  masked =", _SOFTCAPPED) if capped else text
        return f"{new}{_MASK}{part}{text}"
    if part:
        attention = f"Attention <scale: float = @scale{cap}> (qt, present_key, present_value, mask)"
        return f"{new}{_MASK}{part}\n  a = {attention}"
    attention = f"Attention <is_causal = 1, scale: float = @scale{cap}> (qt, present_key, present_value, , , , total)"
    return f"{new}\n  total = Add (past, new)\n  a = {attention}"


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
{_softmax(overload)}
  at = Transpose <perm = [0, 2, 1, 3]> (a)
  y = Reshape (at, joined)
}}"""


def _attributes(overload: str) -> str:
    named = ((WINDOWED, "window"), (CHUNKED, "chunk"), (CAPPED, "softcap"))
    return "".join(f", {name}" for kind, name in named if kind in overload)


def _sinks(overload: str) -> str:
    return ", sinks" if SINKS in overload else ""


def cached_attention(overload: str) -> str:
    """Attention to a cache that takes new keys and values; with SINKS, sinks f32 [A] is the last input."""
    return f"""
CachedAttention <heads, kv_heads, head_dim, scale{_attributes(overload)}>
  (q, k, v, past_key, past_value, past_lengths{_sinks(overload)}) => (y, present_key, present_value) {{{_SHAPES}
{_attention_steps(overload)}"""


def shared_attention(overload: str) -> str:
    """Attention to the cache of an earlier layer, which holds the new tokens: q f32 [B, S, A*D], present_key and
    present_value f32 [B, K, C, D], past_lengths i32 [B] as before the new tokens -> y f32 [B, S, A*D]."""
    return f"""
SharedAttention <heads, kv_heads, head_dim, scale{_attributes(overload)}>
  (q, present_key, present_value, past_lengths{_sinks(overload)}) => (y) {{{_SHAPES}
{_shared_steps(overload)}"""


def _shared_steps(overload: str) -> str:
    return f"""
  q4 = Reshape (q, split)
  qt = Transpose <perm = [0, 2, 1, 3]> (q4)
  past = Cast <to = 7> (past_lengths)
{_softmax(overload)}
  at = Transpose <perm = [0, 2, 1, 3]> (a)
  y = Reshape (at, joined)
}}"""


def rope_inputs(overload: str, *, shared: bool = False) -> tuple[str, ...]:
    """Names of the inputs of RopeAttention, or of RopeSharedAttention."""
    kinds = overload.split("_")
    norms = ("q_norm",) if shared else ("q_norm", "k_norm")
    return (
        "raw_q" if shared else "qkv",
        *(() if UNTURNED in kinds else ("cos", "sin", "positions")),
        *(("present_key", "present_value") if shared else ("past_key", "past_value")),
        "past_lengths",
        *(norms if NORMED in kinds else ()),
        *(("q_cos", "q_sin") if APART in kinds else ()),
        *(("sinks",) if SINKS in kinds else ()),
    )


def _turned(x: str, heads: str, overload: str) -> str:
    """Lines from raw_{x} to {x}, with the norms of its heads and rope."""
    kinds = overload.split("_")
    norm = f"""
  {{y}}_heads = Reshape ({{x}}, split)
  {{y}}_normed = RMSNormalization <axis = -1, epsilon: float = @epsilon> ({{y}}_heads, {x}_norm)
  {{y}} = Reshape ({{y}}_normed, joined)"""
    part = ", rotary_embedding_dim: int = @rotary_embedding_dim" if PARTIAL in kinds else ""
    tables = "q_cos, q_sin" if APART in kinds and x == "q" else "cos, sin"
    how = f"num_heads: int = @{heads}, interleaved: int = @interleaved{part}"
    rope = f"\n  {{y}} = RotaryEmbedding <{how}> ({{x}}, {tables}, positions)"
    steps = [] if UNTURNED in kinds else [rope]
    if NORMED in kinds:
        steps.insert(len(steps) if AFTER in kinds else 0, norm)
    steps = steps or ["\n  {y} = Identity ({x})"]
    names = [f"raw_{x}", *(f"step{index}_{x}" for index in range(1, len(steps))), x]
    return "".join(step.format(x=names[at], y=names[at + 1]) for at, step in enumerate(steps))


def _rope_attributes(overload: str) -> str:
    kinds = overload.split("_")
    named = ((UNTURNED not in kinds, "interleaved"), (PARTIAL in kinds, "rotary_embedding_dim"))
    return "".join(f", {name}" for has, name in (*named, (NORMED in kinds, "epsilon")) if has)


def rope_attention(overload: str) -> str:
    """qkv f32 [B, S, (A+2K)*D] holds queries, keys and values side by side; cos and sin f32 [C, D/2], positions i64
    [B, S], all else as in CachedAttention. q_norm and k_norm f32 [D] are the weights of RMS norms of heads."""
    return f"""
RopeAttention <heads, kv_heads, head_dim, scale{_attributes(overload)}{_rope_attributes(overload)}>
  ({", ".join(rope_inputs(overload))}) => (y, present_key, present_value) {{{_SHAPES}
  a_count = Constant <value_int: int = @heads> ()
  k_count = Constant <value_int: int = @kv_heads> ()
  a_width = Mul (a_count, size1)
  k_width = Mul (k_count, size1)
  widths = Concat <axis = 0> (a_width, k_width, k_width)
  raw_q, raw_k, v = Split <axis = -1> (qkv, widths)
{_turned("q", "heads", overload)}{_turned("k", "kv_heads", overload)}
{_attention_steps(overload)}"""


def rope_shared_attention(overload: str) -> str:
    """SharedAttention to the cache of an earlier layer, with the norm and rope of its queries."""
    return f"""
RopeSharedAttention <heads, kv_heads, head_dim, scale{_attributes(overload)}{_rope_attributes(overload)}>
  ({", ".join(rope_inputs(overload, shared=True))}) => (y) {{{_SHAPES}
{_turned("q", "heads", overload)}
{_shared_steps(overload)}"""
