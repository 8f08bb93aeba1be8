"""Decides from layer records what each rank of a split has: heads, rows and columns of linears, layers of stages.

A degree that would cut a head, a block of a weight format or a layer is refused with the nearest degrees that work.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from itertools import accumulate, pairwise

from ...passes.partition import COLUMNS, ROWS, Cut, Placement, Span, spans
from ...quantize import FORMATS
from ...runtime.engine_file.manifest import LayerCache
from ...runtime.engine_file.split import MAX_DEGREE, Split
from ...runtime.errors import Unsupported
from ..families.spec import Attention, DecoderSpec, GatedMlp, LayerSpec, Linear

FormatOf = Callable[[str], str]
"""The weight format of a module, or "none"."""


def place(spec: DecoderSpec, split: Split, format_of: FormatOf) -> Placement:
    """The parts of each rank.

    Raises:
        Unsupported: this model and its formats cannot be split like this; names the nearest degrees that work.
    """
    if reason := _wrong_tp(spec, split.tp, format_of):
        works = [degree for degree in range(1, MAX_DEGREE + 1) if not _wrong_tp(spec, degree, format_of)]
        raise _refused(split, f"tp{split.tp}", reason, works, split.tp)
    if split.pp > len(spec.layers):
        raise _refused(split, f"pp{split.pp}", f"{len(spec.layers)} layers", [len(spec.layers)], split.pp)
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


def _refused(split: Split, degree: str, reason: str, works: Sequence[int], asked: int) -> Unsupported:
    nearest = [*[one for one in works if one < asked][-1:], *[one for one in works if one > asked][:1]]
    fix = " or ".join(f"{degree[:2]}{one}" for one in nearest)
    return Unsupported(f"cannot split this model by {degree} ({split.name})", found=reason, fix=fix)


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
    """Why the degree does not work, or ""."""
    if tp > spec.vocab_size or tp > spec.hidden_size:
        return f"a vocabulary of {spec.vocab_size} and a hidden size of {spec.hidden_size}"
    for index, layer in enumerate(spec.layers):
        mixer, prefix = layer.mixer, spec.layer.format(index)
        if mixer.heads % tp or max(mixer.kv_heads, tp) % min(mixer.kv_heads, tp):
            return f"{mixer.heads} heads and {mixer.kv_heads} key and value heads in {prefix.rstrip('.')}"
        if reason := _wrong_mlp(layer.mlp, tp):
            return f"{reason} in {prefix.rstrip('.')}"
        for linear, cut in _cuts(layer, tp):
            module = f"{prefix}{linear.module}"
            name = format_of(module)
            block = FORMATS[name].block if name != "none" and cut.axis == COLUMNS else None
            if block and any(stop % block for _, stop in cut.spans):
                size = cut.spans[0][1]
                return f"{module} with blocks of {block} ({name}), of which {size} columns are not a multiple"
    return ""


def _wrong_mlp(mlp: GatedMlp, tp: int) -> str:
    return f"an intermediate size of {mlp.down.columns}" if mlp.down.columns % tp else ""


def _costs(spec: DecoderSpec, format_of: FormatOf) -> list[float]:
    """Bits of the weights of each layer; the first has the embedding's too, the last the head's.

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
    ends = [0.0, *accumulate(costs)]
    best = [(0.0, 0.0, (0,))] + [(float("inf"), float("inf"), (0,))] * len(costs)
    for part in range(1, count + 1):
        best = [
            min(
                (
                    (max(worst, ends[stop] - ends[start]), squares + (ends[stop] - ends[start]) ** 2, (*cuts, stop))
                    for start, (worst, squares, cuts) in enumerate(best[:stop])
                    if start >= part - 1
                ),
                default=(float("inf"), float("inf"), (0,)),
            )
            for stop in range(len(costs) + 1)
        ]
    return tuple(pairwise(best[-1][2]))
