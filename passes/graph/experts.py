"""The definitions of a mixture of experts: `Route` chooses the experts of a token, `MoE` computes them.

Letters as in `ops.py`; E experts, of which k compute a token. Only the chosen experts are computed.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from ...quantize import FORMATS
from ...runtime.dtypes import CHOSEN, LIMITED, SIGMOID, SOFTMAX, SPARSEMIXER

ROUTERS: dict[str, str] = {
    SOFTMAX: "scores = Softmax <axis = -1> (logits)",
    SIGMOID: "scores = Sigmoid (logits)",
    CHOSEN: "scores = Identity (logits)",
}
"""Kinds of routers, each with its scores; SPARSEMIXER has others, and no flags."""
BIASED, GROUPED, NORMED, SCALED = "biased", "grouped", "normed", "scaled"
"""Flags in overloads of `Route`: a bias f32 [E] is added to the scores for the choice only; only experts of the best
groups may be chosen (arXiv 2412.19437, section 2.1.2); the weights of a token are divided by their sum; each expert's
weight is multiplied by its own scale (Gemma 4)."""


def route_overload(
    kind: str, *, biased: bool = False, grouped: bool = False, normed: bool = False, scaled: bool = False
) -> str:
    """The overload of a router of this kind with these flags."""
    flags = ((BIASED, biased), (GROUPED, grouped), (NORMED, normed), (SCALED, scaled))
    return "_".join((kind, *(flag for flag, has in flags if has)))


def route(overload: str) -> str:
    """logits f32 [..., E], perhaps a bias, perhaps scales f32 [E] -> experts i64 [..., k], their weights f32 [..., k].

    Attributes: k; factor, which multiplies the weights; least, below which no sum of weights is divided by; with groups
    `groups`, of which the `kept` with the largest sum of their `best` highest scores are open. Without bias and groups
    experts are ranked by their logits, because different logits may have equal scores.
    """
    kind, *flags = overload.split("_")
    if kind == SPARSEMIXER:
        return _SPARSEMIXER
    bias, grouped, scaled = BIASED in flags, GROUPED in flags, SCALED in flags
    shares = _SHARES if NORMED in flags else "shares = Identity (raw)"
    inputs = f"logits{', bias' * bias}{', scales' * scaled}"
    return f"""
Route <k, factor{", least" * (NORMED in flags)}{", groups, kept, best" * grouped}> ({inputs})
    => (experts, weights) {{
  first = Constant <value_ints = [0]> ()
  last = Constant <value_ints = [-1]> ()
  {ROUTERS[kind]}
  ranked = {"Add (scores, bias)" if bias else f"Identity ({'scores' if grouped else 'logits'})"}
  {_GROUPS if grouped else "open = Identity (ranked)"}
  count = Constant <value_int: int = @k> ()
  counts = Unsqueeze (count, first)
  values, experts = TopK <axis = -1> (open, counts)
  own = GatherElements <axis = -1> (scores, experts)
  raw = {"Softmax <axis = -1> (own)" if kind == CHOSEN else "Identity (own)"}
  {shares}
  by = Constant <value_float: float = @factor> ()
  {_SCALES if scaled else "weights = Mul (shares, by)"}
}}"""


_SHARES = """most = ReduceSum <keepdims = 1> (raw, last)
  floor = Constant <value_float: float = @least> ()
  total = Max (most, floor)
  shares = Div (raw, total)"""
_SCALES = """common = Mul (shares, by)
  each_own = Gather <axis = 0> (scales, experts)
  weights = Mul (common, each_own)"""
_GROUPS = """size = Shape (logits)
  lead = Shape <end = -1> (logits)
  width = Shape <start = -1> (logits)
  group = Constant <value_int: int = @groups> ()
  group1 = Unsqueeze (group, first)
  each = Div (width, group1)
  split = Concat <axis = 0> (lead, group1, each)
  parts = Reshape (ranked, split)
  top = Constant <value_int: int = @best> ()
  top1 = Unsqueeze (top, first)
  highest, highest_at = TopK <axis = -1> (parts, top1)
  sums = ReduceSum <keepdims = 0> (highest, last)
  keep = Constant <value_int: int = @kept> ()
  keep1 = Unsqueeze (keep, first)
  best_sums, best_groups = TopK <axis = -1> (sums, keep1)
  lowest = Constant <value_float = -inf> ()
  zero = Constant <value_float = 0.0> ()
  sums_size = Shape (sums)
  kept_size = Shape (best_groups)
  shut = Expand (lowest, sums_size)
  free = Expand (zero, kept_size)
  mask = ScatterElements <axis = -1> (shut, best_groups, free)
  column = Unsqueeze (mask, last)
  masked = Add (parts, column)
  open = Reshape (masked, size)"""
"""Lines of Route: `open`, the ranks of experts in the best groups, -inf in the others."""


def _pick(name: str, among: str) -> str:
    """Lines of SPARSEMIXER: the highest of the logits `among`, and its share among those of them that are near it."""
    return f"""{name}_value, {name} = TopK <axis = -1> ({among}, one)
  {name}_floor = Max (size, {name}_value)
  {name}_gap = Sub ({name}_value, logits)
  {name}_part = Div ({name}_gap, {name}_floor)
  {name}_far = Greater ({name}_part, limit)
  {name}_near = Where ({name}_far, lowest, {among})
  {name}_share = Softmax <axis = -1> ({name}_near)
  {name}_weight = GatherElements <axis = -1> ({name}_share, {name})"""


_SPARSEMIXER = f"""
Route <k, jitter> (logits) => (experts, weights) {{
  one = Constant <value_ints = [1]> ()
  band = Constant <value_float: float = @jitter> ()
  two = Constant <value_float = 2.0> ()
  limit = Mul (band, two)
  lowest = Constant <value_float = -inf> ()
  size = Abs (logits)
  {_pick("first", "logits")}
  shape = Shape (first)
  gone = Expand (lowest, shape)
  rest = ScatterElements <axis = -1> (logits, first, gone)
  {_pick("second", "rest")}
  experts = Concat <axis = -1> (first, second)
  weights = Concat <axis = -1> (first_weight, second_weight)
}}"""
INPUT, PART = "input", "part"
"""Flags in overloads of `MoE`: the weight multiplies an expert's input and not its result (Llama 4); the weights are
those of the experts from `start` on, and a token's other experts add nothing."""


@dataclass(frozen=True)
class Mixture:
    """What an overload of `MoE` says."""

    up: str
    """The format of the weights of gate and up, or "none"."""
    down: str
    activation: str
    """A name of `pointwise.ACTIVATIONS`, or LIMITED."""
    bias: bool = False
    input: bool = False
    part: bool = False

    @property
    def overload(self) -> str:
        flags = (("bias", self.bias), (INPUT, self.input), (PART, self.part))
        names = (self.up.replace("-", "_"), self.down.replace("-", "_"), self.activation)
        return "__".join((*names, *(name for name, has in flags if has)))

    @classmethod
    def of(cls, overload: str) -> Mixture:
        """The inverse of `overload`.

        Raises:
            KeyError: no such overload.
        """
        up, down, activation, *flags = overload.split("__")
        made = cls(_FORMAT_OF[up], _FORMAT_OF[down], activation, *(name in flags for name in ("bias", INPUT, PART)))
        if made.overload != overload:
            raise KeyError(overload)
        return made

    def weights(self) -> tuple[tuple[str, ...], tuple[str, ...]]:
        """The stored components of gate and up, and of down; each is a stack [E, ...]; biases come after them."""
        ends = ("bias",) if self.bias else ()
        up, down = (
            (("weight",) if one == "none" else tuple(p.suffix for p in FORMATS[one].layouts))
            for one in (self.up, self.down)
        )
        return (*up, *ends), (*down, *ends)


_FORMAT_OF = {name.replace("-", "_"): name for name in ("none", *FORMATS)}


def moe(overload: str) -> str:
    """x f32 [..., H], experts i64 and weights f32 [..., k], gate_up [E, 2I, H], down [E, H, I] -> y f32 [..., H].

    y is the sum of weight * down(act(gate(x)) * up(x)) over a token's experts. Rows of gate_up alternate: a row of
    gate, the same row of up. Each weight is given as the components of its format, then its bias f32 [E, N] if the
    overload has biases. LIMITED has the attributes alpha and limit, PART has start.
    """
    from .pointwise import ACTIVATIONS

    mixture = Mixture.of(overload)
    up, down = mixture.weights()
    if mixture.activation == LIMITED:
        apply = _LIMITED
    else:
        op, attributes = ACTIVATIONS[mixture.activation]
        options = ", ".join(f'{key} = "{value}"' for key, value in attributes.items())
        apply = f"acted = {op} {f'<{options}>' if options else ''} (gate)\n  inner = Mul (acted, up)"
    attributes = [*(("alpha", "limit") if mixture.activation == LIMITED else ()), *(("start",) if mixture.part else ())]
    inputs = ", ".join(("x", "experts", "weights", *(f"up_{one}" for one in up), *(f"down_{one}" for one in down)))
    return f"""
MoE {f"<{', '.join(attributes)}>" if attributes else ""} ({inputs}) => (y) {{
  zero1 = Constant <value_ints = [0]> ()
  one1 = Constant <value_ints = [1]> ()
  minus = Constant <value_ints = [-1]> ()
  size = Shape (x)
  hidden = Shape <start = -1> (x)
  chosen = Shape <start = -1> (experts)
  by_hidden = Concat <axis = 0> (minus, hidden)
  by_chosen = Concat <axis = 0> (minus, chosen)
  tokens = Reshape (x, by_hidden)
  {_PART_OF_EXPERTS if mixture.part else "own = Reshape (experts, by_chosen)"}
  shares = Reshape (weights, by_chosen)
  off = Constant <value_float = 0.0> ()
  every = Reshape (own, minus)
  busy = Unique <sorted = 1> (every)
  {"first = Less (busy, local)" if mixture.part else "first = GreaterOrEqual (busy, zero1)"}
  used = Compress <axis = 0> (busy, first)
  turns1 = Shape (used)
  turns = Squeeze (turns1)
  go = Constant <value = bool {{1}}> ()
  flat_size = Shape (tokens)
  start_sum = Expand (off, flat_size)
  sum = Loop <body = one_expert (int64 turn, bool going, float[T, H] before) => (bool on, float[T, H] after) {{
  on = Identity (going)
  expert = Gather <axis = 0> (used, turn)
  hit = Equal (own, expert)
  part = Where (hit, shares, off)
  share = ReduceSum <keepdims = 1> (part, one1)
  hits = Cast <to = 7> (hit)
  any = ReduceMax <keepdims = 0> (hits, one1)
  places = NonZero (any)
  rows = Squeeze (places, zero1)
  read = Gather <axis = 0> (tokens, rows)
  share_of_rows = Gather <axis = 0> (share, rows)
  {"given = Mul (read, share_of_rows)" if mixture.input else "given = Identity (read)"}
  {_expert_linear("up", mixture.up, up, "given", "gate_up")}
  pairs_size = Constant <value_ints = [0, -1, 2]> ()
  pairs = Reshape (gate_up, pairs_size)
  gate3, up3 = Split <axis = -1, num_outputs = 2> (pairs)
  gate = Squeeze (gate3, minus)
  up = Squeeze (up3, minus)
  {apply}
  {_expert_linear("down", mixture.down, down, "inner", "made")}
  {"result = Identity (made)" if mixture.input else "result = Mul (made, share_of_rows)"}
  places_column = Unsqueeze (rows, one1)
  after = ScatterND <reduction = "add"> (before, places_column, result)
}}> (turns, go, start_sum)
  y = Reshape (sum, size)
}}"""


_PART_OF_EXPERTS = """all = Reshape (experts, by_chosen)
  begin = Constant <value_int: int = @start> ()
  moved = Sub (all, begin)
  local = Shape <start = 0, end = 1> (down_weight)
  zero = Constant <value_int = 0> ()
  above = GreaterOrEqual (moved, zero)
  below = Less (moved, local)
  mine = And (above, below)
  own = Where (mine, moved, local)"""
"""Lines of MoE: `own`, the experts by their places in the weights; those of others are past the end."""
_LIMITED = """top = Constant <value_float: float = @limit> ()
  slope = Constant <value_float: float = @alpha> ()
  bottom = Neg (top)
  one_more = Constant <value_float = 1.0> ()
  low_gate = Min (gate, top)
  low_up = Min (up, top)
  bound_up = Max (low_up, bottom)
  steep = Mul (low_gate, slope)
  opening = Sigmoid (steep)
  acted = Mul (low_gate, opening)
  raised = Add (bound_up, one_more)
  inner = Mul (acted, raised)"""


def _expert_linear(stem: str, fmt: str, names: Sequence[str], x: str, y: str) -> str:
    """Lines: the product of x and one expert's weight, which is gathered from its stack and then decoded."""
    gathered = [f"{stem}_own_{name} = Gather <axis = 0> ({stem}_{name}, expert)" for name in names]
    body = "dense = Identity (weight)" if fmt == "none" else FORMATS[fmt].body
    decoded = [_renamed(line, stem) for line in body.strip().splitlines() if line.strip()]
    bias = f"{y} = Add ({stem}_product, {stem}_own_bias)" if "bias" in names else f"{y} = Identity ({stem}_product)"
    return "\n  ".join(
        [
            *gathered,
            *decoded,
            f"{stem}_turned = Transpose <perm = [1, 0]> ({stem}_own_dense)",
            f"{stem}_product = MatMul ({x}, {stem}_turned)",
            bias,
        ]
    )


def _renamed(line: str, stem: str) -> str:
    """A line of a format's body with names of its own: two linears have bodies in one function."""
    made, _, rest = line.partition(" = ")
    head, paren, arguments = rest.rpartition("(")
    names = [f"{stem}_own_{name.strip()}" for name in arguments.rstrip(")").split(",") if name.strip()]
    results = ", ".join(f"{stem}_own_{name.strip()}" for name in made.split(","))
    return f"{results} = {head}{paren}{', '.join(names)})"
