"""Decides from layer records what each rank of a split has: heads, rows and columns of linears, layers of stages.

A degree that would cut a head, a block of a weight format or a layer is refused with the nearest degrees that work.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Callable, Iterator, Sequence
from itertools import accumulate, pairwise

from ...passes.placement import COLUMNS, ROWS, Cut, Placement, Span, spans
from ...quantize import FORMATS
from ...runtime.engine_file.manifest import LayerCache
from ...runtime.engine_file.split import MAX_DEGREE, Split
from ...runtime.errors import Unsupported
from ..families.spec import Attention, DecoderSpec, LayerSpec, Linear

FormatOf = Callable[[str], str]
"""The weight format of a module, or "none"."""


def place(spec: DecoderSpec, split: Split, format_of: FormatOf) -> Placement:
    """The parts of each rank.

    Raises:
        Unsupported: this model and its formats cannot be split like this; names the nearest degrees that work.
    """
    if reason := _wrong_tp(spec, split.tp, format_of):
        works = [degree for degree in range(1, MAX_DEGREE + 1) if not _wrong_tp(spec, degree, format_of)]
        pp = min(split.pp, len(spec.layers))
        raise _refused(split, f"tp{split.tp} for {reason}", [Split(tp, pp) for tp in _nearest(works, split.tp)])
    if split.pp > len(spec.layers):
        reason = f"pp{split.pp}, more than the model's layers ({len(spec.layers)})"
        raise _refused(split, reason, [Split(split.tp, len(spec.layers))])
    cuts = {}
    for index, layer in enumerate(spec.layers):
        for linear, cut in _cuts(layer, split.tp):
            cuts[f"{spec.layer.format(index)}{linear.module}"] = cut
    stages = balanced(_costs(spec, format_of), split.pp)
    return Placement(split, stages, cuts, spans(spec.vocab_size, split.tp))


def caches_of(spec: DecoderSpec, placement: Placement, rank: int) -> dict[int, LayerCache]:
    """The caches of a rank, by layer."""
    split = placement.split
    return {
        index: LayerCache(stop - start, mixer.head_dim, mixer.window)
        for index in range(*placement.stages[split.stage(rank)])
        for mixer in (spec.layers[index].mixer,)
        for start, stop in (kv_heads(mixer, split.tp)[split.shard(rank)],)
    }


def _nearest(works: Sequence[int], asked: int) -> list[int]:
    """The largest degree below the one asked for, and the smallest above it."""
    return [*[one for one in works if one < asked][-1:], *[one for one in works if one > asked][:1]]


def _refused(split: Split, reason: str, works: Sequence[Split]) -> Unsupported:
    fix = " or ".join(one.name for one in works)
    return Unsupported(f"cannot split this model as {split.name}", found=reason, fix=fix)


def kv_heads(mixer: Attention, tp: int) -> tuple[Span, ...]:
    """The key and value heads of each shard; more shards than heads have the same ones."""
    if tp <= mixer.kv_heads:
        return spans(mixer.kv_heads, tp)
    return tuple((at, at + 1) for at in (shard * mixer.kv_heads // tp for shard in range(tp)))


def _cuts(layer: LayerSpec, tp: int) -> Iterator[tuple[Linear, Cut]]:
    mixer, mlp = layer.mixer, layer.mlp
    own = _times(spans(mixer.heads, tp), mixer.head_dim)
    shared = _times(kv_heads(mixer, tp), mixer.head_dim)
    yield from ((mixer.q, Cut(ROWS, own)), (mixer.k, Cut(ROWS, shared)), (mixer.v, Cut(ROWS, shared)))
    yield mixer.o, Cut(COLUMNS, own)
    inner = spans(mlp.down.columns, tp)
    yield from ((mlp.gate, Cut(ROWS, inner)), (mlp.up, Cut(ROWS, inner)), (mlp.down, Cut(COLUMNS, inner)))


def _times(parts: Sequence[Span], size: int) -> tuple[Span, ...]:
    return tuple((start * size, stop * size) for start, stop in parts)


def _wrong_tp(spec: DecoderSpec, tp: int, format_of: FormatOf) -> str:
    """What the degree cannot divide, or ""."""
    if tp > min(spec.vocab_size, spec.hidden_size):
        return f"a vocabulary of {spec.vocab_size} and a hidden size of {spec.hidden_size}"
    for index, layer in enumerate(spec.layers):
        mixer, prefix = layer.mixer, spec.layer.format(index)
        if mixer.heads % tp or max(mixer.kv_heads, tp) % min(mixer.kv_heads, tp):
            return f"{mixer.heads} heads and {mixer.kv_heads} key and value heads in {prefix.rstrip('.')}"
        if layer.mlp.down.columns % tp:
            return f"an intermediate size of {layer.mlp.down.columns} in {prefix.rstrip('.')}"
        for linear, cut in _cuts(layer, tp):
            module = f"{prefix}{linear.module}"
            name = format_of(module)
            block = FORMATS[name].block if name != "none" and cut.axis == COLUMNS else None
            if block and any(stop % block for _, stop in cut.spans):
                return f"{linear.columns} columns in blocks of {block} ({name}) in {module}"
    return ""


def _costs(spec: DecoderSpec, format_of: FormatOf) -> list[float]:
    """Bits of the weights of each layer; the first has the embedding's too, the last the head's. "none" counts as 16.

    A decode step reads all weights once, and each stage holds its own: so stages of equal bits take equal time and
    equal memory. The embedding counts for the memory.
    """

    def bits(module: str, linear: Linear) -> float:
        name = format_of(module)
        each = 16.0 if name == "none" else FORMATS[name].bits_per_weight(linear.rows, linear.columns)
        return each * linear.rows * linear.columns

    costs = [
        sum(bits(f"{spec.layer.format(index)}{linear.module}", linear) for linear, _ in _cuts(layer, 1))
        for index, layer in enumerate(spec.layers)
    ]
    head = bits(spec.head, Linear(spec.head, spec.vocab_size, spec.hidden_size))
    costs[0] += head if spec.tied else 16.0 * spec.vocab_size * spec.hidden_size
    costs[-1] += head
    return costs


def balanced(costs: Sequence[float], count: int) -> tuple[Span, ...]:
    """Cuts a row of costs into `count` parts, none empty, so that the largest sum is least, then the sum of squares."""
    (largest, _) = _least(costs, count, max, lambda part: part)
    _, stops = _least(costs, count, operator.add, lambda part: part * part if part <= largest else math.inf)
    return tuple(pairwise(stops))


def _least(
    costs: Sequence[float], count: int, join: Callable[[float, float], float], of: Callable[[float], float]
) -> tuple[float, tuple[int, ...]]:
    """The least score of `count` parts, which is that of each (`of` its sum), joined; and where they begin and end."""
    ends = [0.0, *accumulate(costs)]
    best = {0: (0.0, (0,))}
    for part in range(1, count + 1):
        best = {
            stop: min(
                (join(score, of(ends[stop] - ends[start])), (*stops, stop))
                for start, (score, stops) in best.items()
                if start < stop
            )
            for stop in range(part, len(costs) - (count - part) + 1)
        }
    return best[len(costs)]
